#include "kernels/cuda/cuda_check.h"

#include "kernels/check.h"

namespace spinfer::cuda {

void throw_cuda_error(cudaError_t status, const char* call, std::string_view file, int line) {
  fail("{}:{}: {}: {} ({})", file, line, call, cudaGetErrorString(status), cudaGetErrorName(status));
}

void throw_cublas_error(cublasStatus_t status, const char* call, std::string_view file, int line) {
  fail("{}:{}: {}: {} ({})", file, line, call, cublasGetStatusString(status), cublasGetStatusName(status));
}

}  // namespace spinfer::cuda
