#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cuda/bench_kernels.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"

namespace spinfer::cuda {
namespace {

/// Eight independent 16-byte loads in flight a thread; the sum is stored only so that the loads are not
/// removed.
__global__ void __launch_bounds__(512)
    read_kernel(const uint4* __restrict__ data, int64_t count, unsigned* sink) {
  constexpr int kUnroll = 8;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  unsigned sum = 0;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i + (kUnroll - 1) * stride < count;
       i += kUnroll * stride) {
    uint4 v[kUnroll];
#pragma unroll
    for (int j = 0; j < kUnroll; ++j) v[j] = __ldcs(data + i + j * stride);
#pragma unroll
    for (int j = 0; j < kUnroll; ++j) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (sum == 0x12345678) *sink = sum;
}

struct Sample {
  int64_t rows, row_step;
  int tokens, token_step;
};

/// errors[0] += (y − ref)², errors[1] += ref²: one warp a sampled element.
__global__ void sampled_error_kernel(const __half* w, const __half* x, const __half* y, int64_t m, int64_t k,
                                     Sample s, double* errors) {
  const int64_t warp = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  if (warp >= s.rows * s.tokens) return;
  const int64_t row = warp / s.tokens * s.row_step, token = warp % s.tokens * s.token_step;
  float sum = 0;
  for (int64_t i = threadIdx.x % 32; i < k; i += 32)
    sum += __half2float(w[row * k + i]) * __half2float(x[token * k + i]);
  for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
  if (threadIdx.x % 32) return;
  const double difference = double(__half2float(y[token * m + row])) - double(sum);
  atomicAdd(&errors[0], difference * difference);
  atomicAdd(&errors[1], double(sum) * double(sum));
}

}  // namespace

double measure_read_gbps(Context& context) {
  const int64_t bytes = std::min<int64_t>(int64_t{4} << 30, context.info().free_bytes / 2);
  const auto data = context.allocate_shared(size_t(bytes));
  const auto sink = context.allocate_shared(sizeof(unsigned));
  SPINFER_CUDA_CHECK(cudaMemsetAsync(data.get(), 0x5a, size_t(bytes), context.stream()));
  cudaEvent_t begin, end;
  SPINFER_CUDA_CHECK(cudaEventCreate(&begin));
  SPINFER_CUDA_CHECK(cudaEventCreate(&end));
  float best = std::numeric_limits<float>::infinity();
  for (int i = 0; i < 6; ++i) {
    SPINFER_CUDA_CHECK(cudaEventRecord(begin, context.stream()));
    read_kernel<<<unsigned(context.facts().sm_count * 4), 512, 0, context.stream()>>>(
        static_cast<const uint4*>(data.get()), bytes / 16, static_cast<unsigned*>(sink.get()));
    SPINFER_LAUNCH_CHECK("read_kernel");
    SPINFER_CUDA_CHECK(cudaEventRecord(end, context.stream()));
    SPINFER_CUDA_CHECK(cudaEventSynchronize(end));
    float ms = 0;
    SPINFER_CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (i > 0) best = std::min(best, ms);  // the first pass warms up
  }
  SPINFER_CUDA_CHECK(cudaEventDestroy(end));
  SPINFER_CUDA_CHECK(cudaEventDestroy(begin));
  return double(bytes) / best * 1e-6;
}

double sampled_error(Context& context, const Half* w, const Half* x, const Half* y, int64_t m, int64_t k,
                     int n) {
  Sample s;
  s.rows = std::min<int64_t>(m, 256);
  s.row_step = m / s.rows;
  s.tokens = std::min(n, 64);
  s.token_step = n / s.tokens;
  const auto errors = context.allocate_shared(2 * sizeof(double));
  SPINFER_CUDA_CHECK(cudaMemsetAsync(errors.get(), 0, 2 * sizeof(double), context.stream()));
  const unsigned blocks = unsigned((s.rows * s.tokens + 7) / 8);
  sampled_error_kernel<<<blocks, 256, 0, context.stream()>>>(
      reinterpret_cast<const __half*>(w), reinterpret_cast<const __half*>(x),
      reinterpret_cast<const __half*>(y), m, k, s, static_cast<double*>(errors.get()));
  SPINFER_LAUNCH_CHECK("sampled_error_kernel");
  double host[2];
  SPINFER_CUDA_CHECK(
      cudaMemcpyAsync(host, errors.get(), sizeof host, cudaMemcpyDeviceToHost, context.stream()));
  SPINFER_CUDA_CHECK(cudaStreamSynchronize(context.stream()));
  if (!std::isfinite(host[0]) || !std::isfinite(host[1])) return std::numeric_limits<double>::infinity();
  return host[1] > 0 ? std::sqrt(host[0] / host[1]) : std::sqrt(host[0]);
}

}  // namespace spinfer::cuda
