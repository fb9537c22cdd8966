// gpu_ops_bench: attention's bandwidth and flops, and the time of the ops around it, on one GPU, in replayed
// graphs of programmatic dependent launches as the engine's decode runs them. Prints one line a case; --json
// writes all samples.
//   decode   GB/s of K and V read (each once), random block order, cold: the launches of a graph rotate
//            through caches of more than four times the L2
//   prefill  TFLOP/s of the causal half: 2·2·tokens·(context mean)·q heads·head_dim
//   other    microseconds a launch, inputs as warm as the op before leaves them
#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/backend.h"
#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/timed_graph.h"
#include "kernels/device.h"

namespace spinfer::cuda {
namespace {

constexpr int kBatches = 7;

class Bench {
 public:
  explicit Bench(std::string only)
      : device_(*cuda_backend(), {}), context_(context_of(device_.context())), only_(std::move(only)) {
    std::mt19937 random(1);
    std::normal_distribution<float> gaussian;
    std::vector<Half> noise;
    for (int i = 0; i < (1 << 22); ++i) noise.push_back(to_half(gaussian(random)));
    noise_ = array(noise);
    std::vector<float> logits(1 << 22);
    for (float& x : logits) x = 3 * gaussian(random);
    logits_ = array(logits);
  }

  nlohmann::ordered_json report() {
    return {{"gpu", device_.info().name}, {"batches", kBatches}, {"rows", std::move(rows_)}};
  }

  /// `append`: with rotation and storing of the newest tokens in the same op.
  void attention(int sequences, int context_len, int queries, int q_heads, int kv_heads, int head_dim,
                 bool append = false) {
    const char* op = append ? "append+decode" : queries == 1 ? "decode" : "prefill";
    if (!wanted(op)) return;
    const int blocks_each = (context_len + 15) / 16, blocks = blocks_each * sequences,
              n = sequences * queries;
    const int64_t cache = int64_t{blocks} * kv_heads * 16 * head_dim, bytes = 4 * cache;
    const int layers = queries > 1 ? 1 : int(std::max<int64_t>(1, 4 * context_.facts().l2_bytes / bytes + 1));
    const auto qkv = halves(int64_t{n} * (q_heads + 2 * kv_heads) * head_dim), k = halves(cache * layers),
               v = halves(cache * layers), out = halves(int64_t{n} * q_heads * head_dim);
    std::vector<int32_t> table(static_cast<size_t>(blocks)), start(size_t(sequences) + 1);
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), std::mt19937(2));
    for (int i = 0; i <= sequences; ++i) start[size_t(i)] = i * queries;
    const auto gpu_table = array(table), gpu_start = array(start),
               gpu_len = array(std::vector<int32_t>(size_t(sequences), context_len));
    const int bound =
        std::max(256, int(std::bit_ceil(unsigned(context_len))));  // what a decode graph is captured for
    std::vector<int32_t> slots;
    for (int i = 0; i < sequences; ++i)
      slots.push_back(table[size_t(i * blocks_each + blocks_each - 1)] * 16 + (context_len - 1) % 16);
    const auto gpu_slots = array(slots), positions = array(std::vector<int32_t>(size_t(n), context_len - 1));
    const auto frequencies = array(rope_frequencies(head_dim));
    const auto launch = [&](int i) {
      const int64_t layer = i % layers * cache;
      const RopeAppendArgs newest{qkv.data(),
                                  positions.data(),
                                  gpu_slots.data(),
                                  frequencies.data(),
                                  n,
                                  q_heads,
                                  kv_heads,
                                  head_dim,
                                  16,
                                  {k.data() + layer, v.data() + layer}};
      device_.ops().attention(device_.context(), {.qkv = qkv.data(),
                                                  .append = append ? &newest : nullptr,
                                                  .seqs = {sequences, gpu_start.data(), gpu_len.data(),
                                                           gpu_table.data(), blocks_each, queries, bound},
                                                  .kv = {k.data() + layer, v.data() + layer},
                                                  .n = n,
                                                  .q_heads = q_heads,
                                                  .kv_heads = kv_heads,
                                                  .head_dim = head_dim,
                                                  .block_size = 16,
                                                  .scale = 1 / std::sqrt(float(head_dim)),
                                                  .out = out.data()});
    };
    const double keys = context_len - (queries - 1) / 2.0;  // mean number a token sees
    const double flops = 4.0 * n * keys * q_heads * head_dim;
    auto row = measure(op, queries == 1 ? std::max(10, std::min(layers, 32)) : 4, launch);
    const double us = row["us"];
    row.update(
        {{"sequences", sequences},
         {"queries", queries},
         {"context", context_len},
         {"q_heads", q_heads},
         {"kv_heads", kv_heads},
         {"head_dim", head_dim},
         {queries == 1 ? "gbps" : "tflops",
          queries == 1 ? 4.0 * sequences * context_len * kv_heads * head_dim / us / 1e3 : flops / us / 1e6}});
    add(std::move(row));
  }

  void add_norm(int n, int d, NormKind kind) {
    if (!wanted("add_norm")) return;
    const auto h = halves(int64_t{n} * d), delta = halves(int64_t{n} * d), gain = halves(d), bias = halves(d),
               out = halves(int64_t{n} * d);
    const bool layer = kind == NormKind::layer;
    auto row = measure("add_norm", 64, [&](int) {
      device_.ops().add_norm(device_.context(), {h.data(), delta.data(), kind, gain.data(),
                                                 layer ? bias.data() : nullptr, 1e-5f, n, d, out.data()});
    });
    row.update({{"n", n}, {"d", d}, {"kind", layer ? "layer" : "rms"}});
    add(std::move(row));
  }

  void rope(int n, int q_heads, int kv_heads, int head_dim, bool rotate) {
    if (!wanted("rope_append")) return;
    const int64_t cache = int64_t{n} * kv_heads * 16 * head_dim;
    const auto qkv = halves(int64_t{n} * (q_heads + 2 * kv_heads) * head_dim), k = halves(cache),
               v = halves(cache);
    std::vector<int32_t> positions(static_cast<size_t>(n)), slots(static_cast<size_t>(n));
    for (int i = 0; i < n; ++i) {
      positions[size_t(i)] = 100 + 7 * i;
      slots[size_t(i)] = 16 * i + 3;
    }
    const auto gpu_positions = array(positions), gpu_slots = array(slots);
    const auto gpu_frequencies = array(rope_frequencies(head_dim));
    auto row = measure("rope_append", 64, [&](int) {
      device_.ops().rope_append(device_.context(), {qkv.data(),
                                                    gpu_positions.data(),
                                                    gpu_slots.data(),
                                                    rotate ? gpu_frequencies.data() : nullptr,
                                                    n,
                                                    q_heads,
                                                    kv_heads,
                                                    head_dim,
                                                    16,
                                                    {k.data(), v.data()}});
    });
    row.update({{"n", n},
                {"q_heads", q_heads},
                {"kv_heads", kv_heads},
                {"head_dim", head_dim},
                {"rotates", rotate}});
    add(std::move(row));
  }

  void gated_activation(int n, int f) {
    if (!wanted("gated_activation")) return;
    const auto in = halves(int64_t{n} * 2 * f), out = halves(int64_t{n} * f);
    auto row = measure("gated_activation", 64, [&](int) {
      device_.ops().gated_activation(device_.context(), {in.data(), n, f, Activation::silu, out.data()});
    });
    row.update({{"n", n}, {"f", f}});
    add(std::move(row));
  }

  void copies(int n, int d, int vocab) {
    if (!wanted("embed")) return;
    const auto table = halves(int64_t{vocab} * d), out = halves(int64_t{n} * d);
    std::vector<int32_t> host(static_cast<size_t>(n));
    for (int i = 0; i < n; ++i) host[size_t(i)] = i * 131 % vocab;
    const auto ids = array(host);
    for (const char* op : {"embed", "gather_rows"}) {
      auto row = measure(op, 64, [&](int) {
        if (op[0] == 'e') {
          device_.ops().embed(
              device_.context(),
              {.ids = ids.data(), .table = table.data(), .rows = vocab, .n = n, .d = d, .out = out.data()});
        } else {
          device_.ops().gather_rows(device_.context(), {table.data(), ids.data(), n, d, out.data()});
        }
      });
      row.update({{"n", n}, {"d", d}});
      add(std::move(row));
    }
  }

  /// `seen`: distinct earlier tokens of each row.
  void sample(int n, int vocab, const char* how, SampleRow config, int seen = 0) {
    if (!wanted("sample")) return;
    std::vector<SampleRow> rows(size_t(n), config);
    std::vector<int32_t> tokens;
    for (int i = 0; i < n; ++i) {
      rows[size_t(i)].seed = uint64_t(i);
      rows[size_t(i)].seen_begin = int32_t(tokens.size());
      for (int j = 0; j < seen; ++j) tokens.push_back(j * 31 % vocab);
      rows[size_t(i)].seen_end = int32_t(tokens.size());
    }
    const auto gpu_rows = array(rows);
    const auto gpu_tokens = array(tokens), ids = array(std::vector<int32_t>(static_cast<size_t>(n)));
    auto row = measure("sample", 16, [&](int) {
      device_.ops().sample(device_.context(), {logits_.data(), n, vocab, gpu_rows.data(),
                                               seen ? gpu_tokens.data() : nullptr, ids.data()});
    });
    row.update({{"n", n}, {"vocab", vocab}, {"how", how}});
    add(std::move(row));
  }

  void logprobs(int n, int vocab, int top) {
    if (!wanted("logprobs")) return;
    const auto targets = array(std::vector<int32_t>(size_t(n), 5)),
               ids = array(std::vector<int32_t>(size_t(n) * size_t(top + 1)));
    const auto values = array(std::vector<float>(size_t(n) * size_t(top + 2)));
    auto row = measure("logprobs", 16, [&](int) {
      device_.ops().logprobs(device_.context(),
                             {logits_.data(), n, vocab, targets.data(), values.data(), top,
                              top ? ids.data() : nullptr, top ? values.data() + n : nullptr});
    });
    row.update({{"n", n}, {"vocab", vocab}, {"top", top}});
    add(std::move(row));
  }

 private:
  static std::vector<float> rope_frequencies(int head_dim) {
    std::vector<float> frequencies;
    for (int i = 0; i < head_dim / 2; ++i)
      frequencies.push_back(std::pow(10000.0f, -2.0f * float(i) / float(head_dim)));
    return frequencies;
  }
  bool wanted(const char* op) const { return only_.empty() || only_.find(op) != std::string::npos; }

  /// {"op", "us": median, "samples_us"}: microseconds a launch, one sample a replayed graph.
  nlohmann::ordered_json measure(const char* op, int launches, const std::function<void(int)>& launch) {
    TimedGraph graph(context_, launches, launch);
    graph.time();  // the first replay uploads the graph
    std::vector<double> samples;
    for (int i = 0; i < kBatches; ++i) samples.push_back(graph.time());
    std::vector<double> sorted = samples;
    std::sort(sorted.begin(), sorted.end());
    return {{"op", op}, {"us", sorted[kBatches / 2]}, {"samples_us", samples}};
  }
  void add(nlohmann::ordered_json row) {
    std::string line = fmt::format("{:16} {:9.2f} us ", std::string(row["op"]), double(row["us"]));
    for (const auto& [key, value] : row.items())
      if (key != "op" && key != "us" && key != "samples_us")
        line += value.is_number_float() ? fmt::format(" {} {:.1f}", key, double(value))
                                        : fmt::format(" {} {}", key, value.dump());
    fmt::print("{}\n", line);
    std::fflush(stdout);
    rows_.push_back(std::move(row));
  }

  /// `size` Gaussian halves.
  DeviceArray<Half> halves(int64_t size) {
    DeviceArray<Half> memory(device_, size, MemoryUse::workspace);
    for (int64_t begin = 0; begin < size; begin += noise_.size()) {
      const int64_t count = std::min(size - begin, noise_.size());
      SPINFER_CUDA_CHECK(cudaMemcpyAsync(memory.data() + begin, noise_.data(), size_t(count) * sizeof(Half),
                                         cudaMemcpyDeviceToDevice, context_.stream()));
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
  std::string only_;
  DeviceArray<Half> noise_;
  DeviceArray<float> logits_;
  nlohmann::ordered_json rows_ = nlohmann::ordered_json::array();
};

void run_attention(Bench& bench) {
  bench.attention(1, 4096, 4096, 32, 32, 128);
  bench.attention(1, 4096, 4096, 32, 8, 128);
  bench.attention(1, 2048, 2048, 40, 40, 128);
  bench.attention(1, 8192, 512, 32, 8, 128);
  bench.attention(16, 256, 256, 32, 32, 128);
  for (const int head_dim : {64, 80, 96}) bench.attention(1, 4096, 4096, 32, 32, head_dim);
  for (const int head_dim : {64, 80, 96, 128}) {
    bench.attention(64, 2048, 1, 32, 32, head_dim);
    bench.attention(64, 4096, 1, 32, 8, head_dim);
    bench.attention(64, 4096, 1, 64, 8, head_dim);
  }
  bench.attention(1, 32768, 1, 32, 8, 128);
  bench.attention(256, 512, 1, 32, 32, 128);
  for (const int sequences : {1, 8, 32}) {
    for (const int context : {64, 192, 512})
      for (const bool append : {false, true}) bench.attention(sequences, context, 1, 32, 32, 128, append);
    bench.attention(sequences, 512, 1, 40, 40, 128);
    bench.attention(sequences, 512, 1, 32, 8, 128);
  }
}

void run_small(Bench& bench) {
  for (const int n : {1, 8, 32}) {
    bench.add_norm(n, 4096, NormKind::rms);
    bench.add_norm(n, 5120, NormKind::layer);
    bench.rope(n, 32, 32, 128, true);
    bench.rope(n, 40, 40, 128, false);
    bench.gated_activation(n, 11008);
    bench.copies(n, 4096, 32000);
  }
  bench.add_norm(2048, 4096, NormKind::rms);
}

void run_sampling(Bench& bench) {
  for (const int vocab : {32000, 50272, 128256}) {
    for (const int n : {1, 16, 32}) {
      bench.sample(n, vocab, "greedy", {});
      bench.sample(n, vocab, "temperature", {.temperature = 0.8f});
      bench.sample(n, vocab, "top-k top-p", {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f});
      bench.sample(n, vocab, "top-p", {.temperature = 0.8f, .top_p = 0.9f});
      bench.sample(n, vocab, "min-p", {.temperature = 0.8f, .min_p = 0.05f});
      bench.sample(n, vocab, "penalty",
                   {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .repeat_penalty = 1.1f}, 500);
      bench.logprobs(n, vocab, 0);
      bench.logprobs(n, vocab, 5);
    }
  }
}

int run(int argc, char** argv) {
  CLI::App app("Times attention and the small ops on one GPU.", "gpu_ops_bench");
  std::string json, only;
  app.add_option("--json", json, "write all samples to this file");
  app.add_option("--only", only, "ops, comma-separated: decode, prefill, add_norm, rope_append, ...");
  CLI11_PARSE(app, argc, argv);
  check(device_count() > 0, "no CUDA device");
  Bench bench(only);
  run_attention(bench);
  run_small(bench);
  run_sampling(bench);
  if (!json.empty()) {
    std::ofstream file(json);
    file << bench.report().dump() << '\n';
    check(bool(file.flush()), "{}: cannot be written", json);
  }
  return 0;
}

}  // namespace
}  // namespace spinfer::cuda

int main(int argc, char** argv) {
  try {
    return spinfer::cuda::run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "gpu_ops_bench: {}\n", error.what());
    return 1;
  }
}
