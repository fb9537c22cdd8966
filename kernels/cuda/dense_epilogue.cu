// One read of the fp32 product, one write of y: bound by memory, 4 + 2 (+ 2 residual) bytes an element.
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/dense_epilogue.h"
#include "kernels/cuda/epilogue.cuh"

namespace spinfer::cuda {
namespace {

__global__ void finish_kernel(const float* __restrict__ product, int64_t m, Epilogue epilogue, __half* y) {
  const int64_t row = blockIdx.y;
  const int64_t col = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (col >= m) return;
  const float bias = epilogue.bias ? __half2float(epilogue.bias[col]) : 0.0f;
  const int64_t index = row * m + col;
  y[index] = finish(product[index], bias, epilogue, index);
}

}  // namespace

void finish_dense(cudaStream_t stream, const float* product, int n, int64_t m, const Half* bias,
                  Activation act, const Half* residual, Half* y) {
  const Epilogue epilogue{reinterpret_cast<const __half*>(bias), reinterpret_cast<const __half*>(residual),
                          act};
  const dim3 grid(unsigned((m + 255) / 256), unsigned(n));  // n ≤ 1024 by the caller's slices
  finish_kernel<<<grid, 256, 0, stream>>>(product, m, epilogue, reinterpret_cast<__half*>(y));
  SPINFER_LAUNCH_CHECK("finish_kernel");
}

}  // namespace spinfer::cuda
