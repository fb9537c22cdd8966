// input_statistics: column sums of squares by one thread a column, tokens in order, so that they equal the
// CPU's bit by bit; the gram matrix by cuBLAS on the tensor cores, fp16 in, fp32 sums. Bound by the latter:
// 2·n·k² flops.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pruning_ops.h"

namespace spinfer::cuda {
namespace {

__global__ void squares_kernel(const __half* x, int n, int64_t k, double* squares) {
  wait_for_predecessor();
  const int64_t col = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (col >= k) return;
  double sum = squares[col];
#pragma unroll 8
  for (int t = 0; t < n; ++t) {
    const double value = double(__half2float(x[t * k + col]));
    sum = fma(value, value, sum);  // the product is exact
  }
  squares[col] = sum;
}

}  // namespace

void input_statistics(DeviceContext& opaque, const InputStatisticsArgs& a) {
  if (a.n == 0) return;
  constexpr unsigned kThreads = 32;  // small blocks spread the few columns over all SMs
  Context& context = context_of(opaque);
  context.activate();
  launch(context, "input_statistics", squares_kernel,
         {dim3(unsigned((a.k + kThreads - 1) / kThreads)), dim3(kThreads)}, device_half(a.x), a.n, a.k,
         a.squares);
  if (!a.gram) return;
  const float one = 1;
  const int k = int(a.k);
  // x [n][k] is the column-major k×n matrix Xᵀ; the product is symmetric, so its order does not matter.
  SPINFER_CUDA_CHECK(cublasGemmEx(context.blas(), CUBLAS_OP_N, CUBLAS_OP_T, k, k, a.n, &one, a.x, CUDA_R_16F,
                                  k, a.x, CUDA_R_16F, k, &one, a.gram, CUDA_R_32F, k, CUBLAS_COMPUTE_32F,
                                  CUBLAS_GEMM_DEFAULT));
}

}  // namespace spinfer::cuda
