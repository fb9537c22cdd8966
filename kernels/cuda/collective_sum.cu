// The arithmetic of all_reduce: adds the ranks' parts in rank order. Bound by memory: 2·(world + 1) bytes an
// element.
#include <cuda_fp16.h>

#include "kernels/cuda/collective.h"
#include "kernels/cuda/cuda_check.h"

namespace spinfer::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void sum_ranks_kernel(const __half* parts, int world, int64_t stride, int64_t count, __half* x) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kThreads) {
    float sum = 0;
    for (int rank = 0; rank < world; ++rank) sum += __half2float(parts[rank * stride + i]);
    x[i] = __float2half_rn(sum);
  }
}

}  // namespace

void sum_ranks(cudaStream_t stream, const Half* parts, int world, int64_t stride, int64_t count, Half* x) {
  if (count == 0) return;
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  sum_ranks_kernel<<<unsigned(blocks < 2048 ? blocks : 2048), kThreads, 0, stream>>>(
      reinterpret_cast<const __half*>(parts), world, stride, count, reinterpret_cast<__half*>(x));
  SPINFER_LAUNCH_CHECK("sum_ranks_kernel");
}

}  // namespace spinfer::cuda
