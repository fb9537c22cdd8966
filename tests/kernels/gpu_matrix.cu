#include "tests/kernels/gpu_matrix.h"

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/tca_bme_device.h"

namespace spinfer::cuda {
namespace {

constexpr int64_t kGuard = 512;  // halves on either side: 1 KB keeps the contents 256-byte aligned

__global__ void mask_kernel(__half* w, int64_t m, int64_t k, Mask mask) {
  const int64_t col = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, row = blockIdx.y;
  if (col >= k) return;
  bool keep = true;
  switch (mask) {
    case Mask::random:
      break;
    case Mask::one_dense_row:
      keep = row == m / 2;
      break;
    case Mask::one_dense_tile:
      keep = row / 64 == m / 128 && col / 64 == k / 128;
      break;
    case Mask::one_empty_strip:
      keep = row / 16 != m / 32;
      break;
    case Mask::one_lane:
      keep = row % 8 == 3 && col % 8 / 2 == 1;
      break;
  }
  if (!keep) w[row * k + col] = __ushort_as_half(0);
}

/// One warp an output element.
__global__ void reference_kernel(const __half* w, const __half* x, int64_t m, int64_t k, Epilogue e,
                                 float* y) {
  const int64_t row = int64_t(blockIdx.x) * 8 + threadIdx.x / 32, token = blockIdx.y;
  if (row >= m) return;
  float sum = 0;
  for (int64_t i = threadIdx.x % 32; i < k; i += 32)
    sum += __half2float(w[row * k + i]) * __half2float(x[token * k + i]);
  for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
  if (threadIdx.x % 32) return;
  float value = activate(sum + (e.bias ? __half2float(e.bias[row]) : 0.0f), e.act);
  if (e.residual) value += __half2float(e.residual[token * m + row]);
  y[token * m + row] = value;
}

}  // namespace

std::string_view to_string(Mask mask) {
  switch (mask) {
    case Mask::random:
      return "random";
    case Mask::one_dense_row:
      return "one dense row";
    case Mask::one_dense_tile:
      return "one dense tile";
    case Mask::one_empty_strip:
      return "one empty strip";
    case Mask::one_lane:
      return "one lane";
  }
  return "?";
}

GuardedHalves::GuardedHalves(Context& context, int64_t size)
    : context_(context),
      size_(size),
      memory_(context.allocate_shared(size_t(size + 2 * kGuard) * sizeof(Half))),
      data_(static_cast<Half*>(memory_.get()) + kGuard) {
  SPINFER_CUDA_CHECK(
      cudaMemsetAsync(memory_.get(), 0xff, size_t(size + 2 * kGuard) * sizeof(Half), context.stream()));
}

void GuardedHalves::fill_nan() {
  SPINFER_CUDA_CHECK(cudaMemsetAsync(data_, 0xff, size_t(size_) * sizeof(Half), context_.stream()));
}

void GuardedHalves::fill_random(uint64_t seed, float scale) {
  fill_random_sparse(context_, data_, 1, size_, 0, scale, seed);
}

std::vector<Half> GuardedHalves::download() const {
  std::vector<Half> host(static_cast<size_t>(size_));
  SPINFER_CUDA_CHECK(cudaMemcpyAsync(host.data(), data_, size_t(size_) * sizeof(Half), cudaMemcpyDeviceToHost,
                                     context_.stream()));
  SPINFER_CUDA_CHECK(cudaStreamSynchronize(context_.stream()));
  return host;
}

bool GuardedHalves::intact() const {
  std::vector<Half> guards(2 * kGuard);
  const size_t bytes = kGuard * sizeof(Half);
  SPINFER_CUDA_CHECK(cudaStreamSynchronize(context_.stream()));
  SPINFER_CUDA_CHECK(cudaMemcpy(guards.data(), data_ - kGuard, bytes, cudaMemcpyDeviceToHost));
  SPINFER_CUDA_CHECK(cudaMemcpy(guards.data() + kGuard, data_ + size_, bytes, cudaMemcpyDeviceToHost));
  for (const Half h : guards)
    if (h.bits != 0xffff) return false;
  return true;
}

void fill_masked(Context& context, Half* dense, int64_t m, int64_t k, Mask mask, double sparsity,
                 uint64_t seed) {
  fill_random_sparse(context, dense, m, k, sparsity, 0.05f, seed);
  const dim3 grid(unsigned((k + 255) / 256), unsigned(m));
  mask_kernel<<<grid, 256, 0, context.stream()>>>(reinterpret_cast<__half*>(dense), m, k, mask);
  SPINFER_LAUNCH_CHECK("mask_kernel");
}

std::vector<float> reference_linear(Context& context, const LinearArgs& args, const Half* w) {
  const int64_t count = int64_t(args.n) * args.w.m;
  const auto device = context.allocate_shared(size_t(count) * sizeof(float));
  const dim3 grid(unsigned((args.w.m + 7) / 8), unsigned(args.n));
  reference_kernel<<<grid, 256, 0, context.stream()>>>(
      reinterpret_cast<const __half*>(w), reinterpret_cast<const __half*>(args.x), args.w.m, args.w.k,
      epilogue_of(args), static_cast<float*>(device.get()));
  SPINFER_LAUNCH_CHECK("reference_kernel");
  std::vector<float> host(static_cast<size_t>(count));
  SPINFER_CUDA_CHECK(cudaMemcpyAsync(host.data(), device.get(), size_t(count) * sizeof(float),
                                     cudaMemcpyDeviceToHost, context.stream()));
  SPINFER_CUDA_CHECK(cudaStreamSynchronize(context.stream()));
  return host;
}

}  // namespace spinfer::cuda
