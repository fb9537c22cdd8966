// inverse_factor in fp32: cuSOLVER's Cholesky decomposition and cuBLAS's triangular solve. As on the CPU,
// with J the reversal of rows and columns and J·H·J = L·Lᵀ, U = J·L⁻¹·J. To cuSOLVER our row-major memory is
// column-major, where reversing a k×k matrix both ways and transposing it is to read its memory backwards.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "kernels/check.h"
#include "kernels/cuda/cusolver_library.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pruning_ops.h"

namespace spinfer::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;

dim3 blocks_for(int64_t count) {
  return dim3(unsigned(std::min((count + kThreads - 1) / kThreads, kMaxBlocks)));
}

/// out = the damped gram matrix, backwards; its lower triangle in cuSOLVER's order counts.
__global__ void reverse_damped_kernel(const float* gram, int64_t k, float mean, float damp, float* out) {
  wait_for_predecessor();
  const int64_t count = k * k, step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    float value = gram[i];
    if (i % (k + 1) == 0) value = (value != 0 ? value : mean) + damp;
    out[count - 1 - i] = value;
  }
}

__global__ void identity_kernel(float* out, int64_t k) {
  wait_for_predecessor();
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < k * k; i += step)
    out[i] = i % (k + 1) == 0;
}

/// out = in backwards, with zeros below the diagonal.
__global__ void reverse_upper_kernel(const float* in, int64_t k, float* out) {
  wait_for_predecessor();
  const int64_t count = k * k, step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step)
    out[i] = i % k >= i / k ? in[count - 1 - i] : 0.0f;
}

/// The mean of the diagonal entries that are not zero; NaN or infinite where one of them is.
double mean_of_diagonal(const Context& context, const InverseFactorArgs& a) {
  std::vector<float> diagonal(static_cast<size_t>(a.k));
  SPINFER_CUDA_CHECK(cudaMemcpy2DAsync(diagonal.data(), sizeof(float), a.gram,
                                       size_t(a.k + 1) * sizeof(float), sizeof(float), size_t(a.k),
                                       cudaMemcpyDeviceToHost, context.stream()));
  SPINFER_CUDA_CHECK(cudaStreamSynchronize(context.stream()));
  double sum = 0;
  int64_t live = 0;
  for (const float value : diagonal) {
    sum += double(value);
    live += value != 0;
  }
  return live > 0 ? sum / double(live) : 1;
}

/// In place: the lower triangle of the column-major matrix → L. False if it is not positive definite.
bool cholesky(Context& context, float* matrix, int k) {
  const CusolverLibrary library;
  const CusolverHandle solver(library, context.stream());
  int size = 0;
  check_cusolver(library.spotrf_buffer_size(solver.get(), CUBLAS_FILL_MODE_LOWER, k, matrix, k, &size));
  const auto work = context.allocate_shared(size_t(size) * sizeof(float));
  const auto info = context.allocate_shared(sizeof(int));
  check_cusolver(library.spotrf(solver.get(), CUBLAS_FILL_MODE_LOWER, k, matrix, k,
                                static_cast<float*>(work.get()), size, static_cast<int*>(info.get())));
  int result = 0;
  SPINFER_CUDA_CHECK(
      cudaMemcpyAsync(&result, info.get(), sizeof(int), cudaMemcpyDeviceToHost, context.stream()));
  SPINFER_CUDA_CHECK(cudaStreamSynchronize(context.stream()));
  return result == 0;
}

}  // namespace

bool inverse_factor(DeviceContext& opaque, const InverseFactorArgs& a) {
  Context& context = context_of(opaque);
  context.activate();
  const double mean = mean_of_diagonal(context, a);
  if (!std::isfinite(mean)) return false;
  const int64_t count = a.k * a.k;
  const int k = int(a.k);
  const auto memory = context.allocate_shared(size_t(count) * sizeof(float));
  float* lower = static_cast<float*>(memory.get());
  launch(context, "reverse_damped", reverse_damped_kernel, {blocks_for(count), dim3(kThreads)}, a.gram, a.k,
         float(mean), float(a.dampening * mean), lower);
  if (!cholesky(context, lower, k)) return false;
  launch(context, "identity", identity_kernel, {blocks_for(count), dim3(kThreads)}, a.gram, a.k);
  const float one = 1;
  SPINFER_CUDA_CHECK(cublasStrsm(context.blas(), CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_LOWER, CUBLAS_OP_T,
                                 CUBLAS_DIAG_NON_UNIT, k, k, &one, lower, k, a.gram, k));
  launch(context, "reverse_upper", reverse_upper_kernel, {blocks_for(count), dim3(kThreads)}, a.gram, a.k,
         lower);
  SPINFER_CUDA_CHECK(cudaMemcpyAsync(a.gram, lower, size_t(count) * sizeof(float), cudaMemcpyDeviceToDevice,
                                     context.stream()));
  SPINFER_CUDA_CHECK(cudaStreamSynchronize(context.stream()));  // `memory` goes
  return true;
}

}  // namespace spinfer::cuda
