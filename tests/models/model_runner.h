// Runs a model on the CPU without an engine: one sequence at a time, its KV blocks one after the other, as
// many ranks as asked for on threads of their own.
#pragma once

#include <filesystem>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "kernels/device.h"
#include "kernels/thread_pool.h"
#include "models/model.h"

namespace spinfer::test {

class ModelRunner {
 public:
  using MakeModel = std::function<Model(Device&, ThreadPool&, Shard)>;

  ModelRunner(int world, int max_tokens, const MakeModel& make) {
    for (int rank = 0; rank < world; ++rank) ranks_.push_back(std::make_unique<Rank>());
    std::vector<DeviceContext*> contexts;
    for (auto& rank : ranks_) contexts.push_back(&rank->device.context());
    cpu_backend().connect(contexts);
    on_ranks([&](int r) { ranks_[size_t(r)]->open(make, {r, world}, max_tokens); });
  }

  static ModelRunner load(const std::filesystem::path& dir, const LoadOptions& options = {}, int world = 1,
                          int max_tokens = 256) {
    const ModelConfig config = load_config(dir);
    return ModelRunner(world, max_tokens, [&](Device& device, ThreadPool& pool, Shard shard) {
      return load_model(dir, config, device, pool, shard, options);
    });
  }

  const Model& model(int rank = 0) const { return ranks_[size_t(rank)]->model; }
  Device& device(int rank = 0) { return ranks_[size_t(rank)]->device; }
  const Workspace& workspace() const { return *ranks_[0]->workspace; }

  /// Appends `ids` to the sequence; logits [ids][vocab] of rank 0 (all ranks have the same).
  std::vector<float> append(const std::vector<int32_t>& ids) {
    const int past = length_;
    length_ += int(ids.size());
    on_ranks([&](int r) { ranks_[size_t(r)]->append(ids, past); });
    return ranks_[0]->workspace->logits.download(int64_t(ids.size()) * model().config.vocab_size);
  }
  void restart() { length_ = 0; }

 private:
  struct Rank {
    static constexpr int kBlock = 16;
    Device device{cpu_backend(), {.threads = 1}};
    ThreadPool pool{1};
    Model model;
    std::unique_ptr<Workspace> workspace;
    std::vector<DeviceArray<Half>> cache;
    KvCacheView kv;
    std::vector<int32_t> block_table;

    void open(const MakeModel& make, Shard shard, int max_tokens) {
      model = make(device, pool, shard);
      workspace = std::make_unique<Workspace>(device, model, max_tokens, max_tokens);
      const int blocks = (max_tokens + kBlock - 1) / kBlock;
      block_table.resize(size_t(blocks));
      std::iota(block_table.rbegin(), block_table.rend(), 0);  // backwards: contiguous is a coincidence
      const int64_t size = int64_t{blocks} * model.kv_heads * kBlock * model.config.head_dim;
      const std::vector<Half> poison(size_t(size),
                                     Half{0x7e00});  // NaN: nothing may read what was not written
      for (int i = 0; i < 2 * model.config.layers; ++i) {
        cache.emplace_back(device, size, MemoryUse::kv_cache);
        cache.back().upload(poison.data(), size);
      }
      kv.block_size = kBlock;
      for (int i = 0; i < model.config.layers; ++i) {
        kv.layers.push_back({cache[size_t(2 * i)].data(), cache[size_t(2 * i + 1)].data()});
      }
    }

    void append(const std::vector<int32_t>& ids, int past) {
      const int n = int(ids.size()), end = past + n;
      std::vector<int32_t> positions(ids.size()), slots(ids.size()), rows(ids.size());
      std::iota(positions.begin(), positions.end(), past);
      std::iota(rows.begin(), rows.end(), 0);
      for (int i = 0; i < n; ++i) {
        slots[size_t(i)] = block_table[size_t((past + i) / kBlock)] * kBlock + (past + i) % kBlock;
      }
      const std::vector<int32_t> query_start{0, n}, context_len{end};
      ForwardBatch batch;
      batch.n = batch.num_logits = n;
      batch.token_ids = ids.data();
      batch.positions = positions.data();
      batch.slots = slots.data();
      batch.logit_rows = rows.data();
      batch.seqs = {
          1, query_start.data(), context_len.data(), block_table.data(), int(block_table.size()), n, end};
      const std::vector<float> poison(size_t(n) * size_t(model.config.vocab_size),
                                      std::numeric_limits<float>::quiet_NaN());
      workspace->logits.upload(poison.data(), int64_t(poison.size()));
      forward(device, model, batch, kv, *workspace);
    }
  };

  void on_ranks(const std::function<void(int)>& body) {
    std::vector<std::thread> threads;
    std::vector<std::exception_ptr> errors(ranks_.size());
    for (int r = 0; r < int(ranks_.size()); ++r) {
      threads.emplace_back([&, r] {
        try {
          body(r);
        } catch (const std::exception& e) {
          errors[size_t(r)] = std::current_exception();
          cpu_backend().abort_group(ranks_[size_t(r)]->device.context(), e.what());
        }
      });
    }
    for (auto& thread : threads) thread.join();
    for (const auto& error : errors) {
      if (error) std::rethrow_exception(error);
    }
  }

  std::vector<std::unique_ptr<Rank>> ranks_;
  int length_ = 0;
};

/// Natural-log softmax of one row.
inline std::vector<double> log_softmax(const float* logits, int64_t vocab) {
  double max = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t i = 0; i < vocab; ++i) max = std::max(max, double(logits[i]));
  for (int64_t i = 0; i < vocab; ++i) sum += std::exp(double(logits[i]) - max);
  std::vector<double> result(static_cast<size_t>(vocab));
  for (int64_t i = 0; i < vocab; ++i) result[size_t(i)] = double(logits[i]) - max - std::log(sum);
  return result;
}

}  // namespace spinfer::test
