// gpu_ops_bench: attention's bandwidth and flops, and the time of the ops around it, on one GPU. Prints one
// line a case.
//   decode   GB/s of K and V read (each once), random block order, cold cache by size
//   prefill  TFLOP/s of the causal half: 2·2·tokens·(context mean)·q heads·head_dim
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/device.h"

namespace spinfer::cuda {
namespace {

/// Median microseconds of five batches of launches.
template <class F>
double time_us(Context& context, int launches, const F& f) {
  cudaEvent_t begin, end;
  SPINFER_CUDA_CHECK(cudaEventCreate(&begin));
  SPINFER_CUDA_CHECK(cudaEventCreate(&end));
  f();
  std::vector<float> runs;
  for (int batch = 0; batch < 5; ++batch) {
    SPINFER_CUDA_CHECK(cudaEventRecord(begin, context.stream()));
    for (int i = 0; i < launches; ++i) f();
    SPINFER_CUDA_CHECK(cudaEventRecord(end, context.stream()));
    SPINFER_CUDA_CHECK(cudaEventSynchronize(end));
    float ms = 0;
    SPINFER_CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    runs.push_back(ms * 1000 / float(launches));
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(runs.begin(), runs.end());
  return runs[2];
}

class Bench {
 public:
  Bench() : device_(*cuda_backend(), {}), context_(context_of(device_.context())) {
    std::mt19937 random(1);
    std::normal_distribution<float> gaussian;
    for (int i = 0; i < (1 << 20); ++i) noise_.push_back(to_half(gaussian(random)));
  }

  void attention(int sequences, int context_len, int queries, int q_heads, int kv_heads, int head_dim) {
    const int blocks_each = (context_len + 15) / 16, blocks = blocks_each * sequences,
              n = sequences * queries;
    const int64_t cache = int64_t{blocks} * kv_heads * 16 * head_dim;
    const auto qkv = halves(int64_t{n} * (q_heads + 2 * kv_heads) * head_dim), k = halves(cache),
               v = halves(cache), out = halves(int64_t{n} * q_heads * head_dim);
    std::vector<int32_t> table(static_cast<size_t>(blocks)), start(size_t(sequences) + 1);
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), std::mt19937(2));
    for (int i = 0; i <= sequences; ++i) start[size_t(i)] = i * queries;
    const auto gpu_table = array(table), gpu_start = array(start),
               gpu_len = array(std::vector<int32_t>(size_t(sequences), context_len));
    AttentionArgs a{.qkv = qkv.data(),
                    .seqs = {sequences, gpu_start.data(), gpu_len.data(), gpu_table.data(), blocks_each,
                             queries, context_len},
                    .kv = {k.data(), v.data()},
                    .n = n,
                    .q_heads = q_heads,
                    .kv_heads = kv_heads,
                    .head_dim = head_dim,
                    .block_size = 16,
                    .scale = 1 / std::sqrt(float(head_dim)),
                    .out = out.data()};
    const double us = time_us(context_, 10, [&] { device_.ops().attention(device_.context(), a); });
    const double keys = context_len - (queries - 1) / 2.0;  // mean number a token sees
    const double flops = 4.0 * n * keys * q_heads * head_dim;
    const double bytes = 4.0 * sequences * context_len * kv_heads * head_dim;
    fmt::print(
        "attention {:3} × {:5} of {:5} tokens, {:2}/{:2} heads × {:3}: {:9.1f} us {:7.0f} GB/s {:6.1f} "
        "TFLOP/s\n",
        sequences, queries, context_len, q_heads, kv_heads, head_dim, us, bytes / us / 1e3, flops / us / 1e6);
  }

  void sample(int n, int vocab, const char* name, SampleRow row) {
    std::vector<float> logits(size_t(n) * size_t(vocab));
    for (size_t i = 0; i < logits.size(); ++i) logits[i] = 3 * to_float(noise_[i % noise_.size()]);
    const auto gpu_logits = array(logits);
    std::vector<SampleRow> rows(size_t(n), row);
    for (int i = 0; i < n; ++i) rows[size_t(i)].seed = uint64_t(i);
    const auto gpu_rows = array(rows);
    const auto ids = array(std::vector<int32_t>(static_cast<size_t>(n)));
    const SampleArgs a{gpu_logits.data(), n, vocab, gpu_rows.data(), nullptr, ids.data()};
    const double us = time_us(context_, 10, [&] { device_.ops().sample(device_.context(), a); });
    fmt::print("sample {:3} × {:6} {:12}: {:7.1f} us\n", n, vocab, name, us);
  }

  void rows(int n, int d) {
    const auto h = halves(int64_t{n} * d), delta = halves(int64_t{n} * d), gain = halves(d),
               out = halves(int64_t{n} * d);
    const AddNormArgs a{h.data(), delta.data(), NormKind::rms, gain.data(), nullptr, 1e-5f, n, d, out.data()};
    const double us = time_us(context_, 50, [&] { device_.ops().add_norm(device_.context(), a); });
    fmt::print("add_norm {:4} × {:5}: {:6.2f} us\n", n, d, us);
  }

 private:
  DeviceArray<Half> halves(int64_t size) {
    DeviceArray<Half> memory(device_, size, MemoryUse::workspace);
    for (int64_t begin = 0; begin < size; begin += int64_t(noise_.size())) {
      const int64_t count = std::min(size - begin, int64_t(noise_.size()));
      device_.ops().upload(device_.context(), memory.data() + begin, noise_.data(),
                           size_t(count) * sizeof(Half));
    }
    return memory;
  }
  template <class T>
  DeviceArray<T> array(const std::vector<T>& host) {
    DeviceArray<T> memory(device_, int64_t(host.size()), MemoryUse::workspace);
    memory.upload(host.data(), int64_t(host.size()));
    return memory;
  }

  Device device_;
  Context& context_;
  std::vector<Half> noise_;
};

int run() {
  if (device_count() == 0) {
    fmt::print(stderr, "gpu_ops_bench: no CUDA device\n");
    return 1;
  }
  Bench bench;
  bench.attention(1, 4096, 4096, 32, 32, 128);
  bench.attention(1, 4096, 4096, 32, 8, 128);
  bench.attention(1, 2048, 2048, 40, 40, 128);
  bench.attention(1, 4096, 4096, 32, 32, 64);
  bench.attention(64, 2048, 1, 32, 32, 128);
  bench.attention(64, 4096, 1, 32, 8, 128);
  bench.attention(64, 4096, 1, 64, 8, 128);
  bench.attention(64, 2048, 1, 32, 32, 64);
  bench.attention(64, 2048, 1, 32, 32, 80);
  bench.attention(8, 320, 1, 32, 32, 128);
  bench.attention(1, 32768, 1, 32, 8, 128);
  bench.sample(16, 32000, "greedy", {});
  bench.sample(16, 32000, "top-k top-p", {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f});
  bench.sample(16, 128256, "greedy", {});
  bench.sample(16, 128256, "top-k top-p", {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f});
  bench.rows(8, 4096);
  bench.rows(2048, 4096);
  return 0;
}

}  // namespace
}  // namespace spinfer::cuda

int main() {
  try {
    return spinfer::cuda::run();
  } catch (const std::exception& error) {
    fmt::print(stderr, "gpu_ops_bench: {}\n", error.what());
    return 1;
  }
}
