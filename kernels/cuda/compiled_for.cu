#include "kernels/cuda/compiled_for.h"

#include "kernels/cuda/cuda_check.h"

namespace spinfer::cuda {
namespace {

__global__ void any_kernel() {}

}  // namespace

int compiled_for() {
  cudaFuncAttributes attributes;
  SPINFER_CUDA_CHECK(cudaFuncGetAttributes(&attributes, any_kernel));
  return attributes.ptxVersion;
}

}  // namespace spinfer::cuda
