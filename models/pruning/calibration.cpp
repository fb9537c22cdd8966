#include "models/pruning/calibration.h"

#include <algorithm>
#include <numeric>

#include "kernels/check.h"

namespace spinfer {
namespace {

constexpr int kBlock = 16;          // tokens of a KV block
constexpr int kBatchTokens = 2048;  // enough for the tensor cores; one sample of the papers' length

int64_t blocks_of(const std::vector<int32_t>& sample) {
  return (int64_t(sample.size()) + kBlock - 1) / kBlock;
}

/// Zeroed, as gram and squares are sums.
template <class T>
DeviceArray<T> zeros(Device& device, int64_t count) {
  DeviceArray<T> array(device, count, MemoryUse::workspace);
  device.ops().fill_zero(device.context(), array.data(), size_t(count) * sizeof(T));
  return array;
}

}  // namespace

void check_samples(const CalibrationSamples& samples, const ModelConfig& config) {
  check(!samples.empty(), "calibration: there is no sample");
  for (const auto& sample : samples) {
    check(!sample.empty() && int64_t(sample.size()) <= config.max_positions,
          "calibration: a sample of {} tokens; must be 1…{}, what the model takes", sample.size(),
          config.max_positions);
    for (const int32_t id : sample) {
      check(id >= 0 && id < config.vocab_size, "calibration: token id {} must be 0…{}", id,
            config.vocab_size - 1);
    }
  }
}

Calibration::Calibration(Device& device, const Model& embeddings, const CalibrationSamples& samples)
    : device_(device), hidden_size_(embeddings.config.hidden_size) {
  int most_tokens = 0;
  int64_t most_blocks = 0;
  for (size_t begin = 0, end = 0; begin < samples.size(); begin = end) {
    int64_t tokens = 0, blocks = 0;
    while (end < samples.size() && (end == begin || tokens + int64_t(samples[end].size()) <= kBatchTokens)) {
      tokens += int64_t(samples[end].size());
      blocks += blocks_of(samples[end++]);
    }
    batches_.push_back(make_batch(samples, begin, end, tokens_));
    tokens_ += tokens;
    most_tokens = std::max(most_tokens, int(tokens));
    most_blocks = std::max(most_blocks, blocks);
  }
  hidden_ = DeviceArray<Half>(device, tokens_ * hidden_size_, MemoryUse::workspace);
  std::vector<int32_t> numbers(static_cast<size_t>(most_tokens));
  std::iota(numbers.begin(), numbers.end(), 0);
  row_numbers_ = DeviceArray<int32_t>(device, most_tokens, MemoryUse::workspace);
  row_numbers_.upload(numbers.data(), most_tokens);
  workspace_ = std::make_unique<Workspace>(device, embeddings, most_tokens, 0);
  const int64_t cache = most_blocks * embeddings.kv_heads * kBlock * embeddings.config.head_dim;
  keys_ = DeviceArray<Half>(device, cache, MemoryUse::kv_cache);
  values_ = DeviceArray<Half>(device, cache, MemoryUse::kv_cache);
  kv_ = {{{keys_.data(), values_.data()}}, kBlock};
  for (const Batch& batch : batches_) {
    forward_embeddings(device, embeddings, batch.forward, *workspace_);
    copy(workspace_->h.data(), hidden_.data() + batch.first * hidden_size_, batch.forward.n);
  }
}

Calibration::Batch Calibration::make_batch(const CalibrationSamples& samples, size_t begin, size_t end,
                                           int64_t first) {
  std::vector<int32_t> ids, positions, slots, query_start{0}, context_len, block_table;
  int64_t max_blocks = 0;
  int longest = 0;
  for (size_t s = begin; s < end; ++s) {
    max_blocks = std::max(max_blocks, blocks_of(samples[s]));
    longest = std::max(longest, int(samples[s].size()));
  }
  int32_t block = 0;
  for (size_t s = begin; s < end; ++s) {
    for (int32_t i = 0; i < int32_t(samples[s].size()); ++i) {
      ids.push_back(samples[s][size_t(i)]);
      positions.push_back(i);
      slots.push_back(block * kBlock + i);
    }
    for (int64_t b = 0; b < max_blocks; ++b) block_table.push_back(b < blocks_of(samples[s]) ? block++ : 0);
    query_start.push_back(int32_t(ids.size()));
    context_len.push_back(int32_t(samples[s].size()));
  }
  Batch batch;
  batch.first = first;
  const auto put = [&](const std::vector<int32_t>& host) {
    batch.storage.emplace_back(device_, int64_t(host.size()), MemoryUse::workspace);
    batch.storage.back().upload(host.data(), int64_t(host.size()));
    return batch.storage.back().data();
  };
  batch.forward.n = int(ids.size());
  batch.forward.token_ids = put(ids);
  batch.forward.positions = put(positions);
  batch.forward.slots = put(slots);
  batch.forward.seqs = {int(end - begin), put(query_start), put(context_len), put(block_table),
                        int(max_blocks),  longest,          longest};
  return batch;
}

void Calibration::copy(const Half* from, Half* to, int64_t rows) {
  device_.ops().gather_rows(
      device_.context(),
      {.src = from, .rows = row_numbers_.data(), .n = int(rows), .d = int(hidden_size_), .out = to});
}

void Calibration::run(const Model& layer, After after, const LinearObserver& observer,
                      const std::function<void()>& done) {
  for (const Batch& batch : batches_) {
    Half* states = hidden_.data() + batch.first * hidden_size_;
    copy(states, workspace_->h.data(), batch.forward.n);
    forward_layer(device_, layer, 0, batch.forward, kv_, *workspace_, observer);
    if (after == After::advance) copy(workspace_->h.data(), states, batch.forward.n);
    if (done) done();
  }
  device_.ops().synchronize(device_.context());
}

LayerStatistics::LayerStatistics(Device& device, const LayerSpec& spec, Gram gram) : device_(device) {
  for (const LinearSpec* linear : spec.linears()) {
    inputs_.push_back({zeros<double>(device, linear->k), gram == Gram::all
                                                             ? zeros<float>(device, linear->k * linear->k)
                                                             : DeviceArray<float>()});
  }
}

LinearObserver LayerStatistics::observer(const LayerWeights& layer) {
  return [this, &layer](const LinearWeight& linear, const Half* x, int n) {
    const LinearWeight* const members[] = {&layer.qkv, &layer.attn_out, &layer.mlp_in, &layer.mlp_out};
    const auto which = size_t(std::find(members, members + 4, &linear) - members);
    Input& input = inputs_.at(which);
    device_.ops().input_statistics(
        device_.context(),
        {.x = x, .n = n, .k = linear.view.k, .squares = input.squares.data(), .gram = input.gram.data()});
  };
}

}  // namespace spinfer
