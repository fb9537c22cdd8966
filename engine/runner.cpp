#include "engine/runner.h"

#include <algorithm>
#include <cassert>

#include "engine/memory_plan.h"
#include "engine/request.h"

namespace spinfer {
namespace {

constexpr int64_t kAlign = 64;  // int32 elements: sections begin at 256 bytes

int64_t aligned(int64_t count) {
  return (count + kAlign - 1) / kAlign * kAlign;
}

/// int32 elements of the index arrays of the largest step: token_ids, positions, slots; query_start,
/// context_len; block_table; logit_rows.
int64_t index_elements(const StepLimits& l) {
  return 3 * aligned(l.max_tokens) + aligned(l.max_seqs + 1) + aligned(l.max_seqs) +
         aligned(l.max_seqs * l.max_blocks) + aligned(l.max_logits);
}

}  // namespace

Runner::Runner(const Backend& backend, const DeviceOptions& options, Shard shard)
    : device_(backend, options), shard_(shard) {}

int64_t Runner::index_bytes(const StepLimits& l) {
  const int64_t words =
      index_elements(l) + l.max_seqs + 2 * int64_t{l.max_logits} + 2 * int64_t{l.max_seqs} * kMaxLogprobs;
  return words * int64_t{sizeof(int32_t)} + l.max_seqs * int64_t{sizeof(SampleRow)};
}

int64_t Runner::kv_block_bytes(const ModelConfig& config, int world, int block_size) {
  const int64_t heads = (config.kv_heads + world - 1) / world;
  return 2 * config.layers * heads * config.head_dim * block_size * int64_t{sizeof(Half)};
}

void Runner::allocate(const StepLimits& limits, int64_t kv_blocks, int block_size) {
  const MemoryUse use = MemoryUse::workspace;
  workspace_ = std::make_unique<Workspace>(device_, *model_, limits.max_tokens, limits.max_logits);
  index_ = DeviceArray<int32_t>(device_, index_elements(limits), use);
  sample_rows_ = DeviceArray<SampleRow>(device_, limits.max_seqs, use);
  ids_ = DeviceArray<int32_t>(device_, limits.max_seqs, use);
  score_targets_ = DeviceArray<int32_t>(device_, limits.max_logits, use);
  logprobs_ = DeviceArray<float>(device_, limits.max_logits, use);
  top_ids_ = DeviceArray<int32_t>(device_, int64_t{limits.max_seqs} * kMaxLogprobs, use);
  top_logprobs_ = DeviceArray<float>(device_, int64_t{limits.max_seqs} * kMaxLogprobs, use);

  kv_.block_size = block_size;
  const int64_t elements = kv_blocks * model_->kv_heads * block_size * model_->config.head_dim;
  for (int layer = 0; layer < model_->config.layers; ++layer) {
    for (int i = 0; i < 2; ++i) kv_arrays_.emplace_back(device_, elements, MemoryUse::kv_cache);
    kv_.layers.push_back({kv_arrays_.end()[-2].data(), kv_arrays_.end()[-1].data()});
  }
}

StepResult Runner::run(const Batch& batch) {
  StepResult result;
  if (batch.tokens() == 0) return result;
  const ForwardBatch forward_batch = upload(batch);
  forward(device_, *model_, forward_batch, kv_, *workspace_);
  if (shard_.rank == 0) {
    sample(batch, result);
    score(batch, result);
  }
  device_.ops().synchronize(device_.context());
  return result;
}

ForwardBatch Runner::upload(const Batch& batch) {
  staging_.clear();
  const auto place = [this](const std::vector<int32_t>& values) {
    const int32_t* address = index_.data() + staging_.size();
    staging_.insert(staging_.end(), values.begin(), values.end());
    staging_.resize(size_t(aligned(int64_t(staging_.size()))));
    return address;
  };
  ForwardBatch f;
  f.n = batch.tokens();
  f.token_ids = place(batch.token_ids);
  f.positions = place(batch.positions);
  f.slots = place(batch.slots);
  f.seqs.count = batch.sequences();
  f.seqs.query_start = place(batch.query_start);
  f.seqs.context_len = place(batch.context_len);
  f.seqs.block_table = place(batch.block_table);
  f.seqs.max_blocks = batch.max_blocks;
  f.seqs.max_query_len = batch.max_query_len;
  f.seqs.max_context_len = batch.max_context_len;
  f.logit_rows = place(batch.logit_rows);
  f.num_logits = int(batch.logit_rows.size());
  assert(int64_t(staging_.size()) <= index_.size());
  index_.upload(staging_.data(), int64_t(staging_.size()));
  return f;
}

void Runner::sample(const Batch& batch, StepResult& result) {
  const int rows = int(batch.sample_rows.size());
  if (rows == 0) return;
  const int vocab = int(model_->config.vocab_size);
  sample_rows_.upload(batch.sample_rows.data(), rows);
  const int64_t seen = int64_t(batch.seen.size());
  if (seen > seen_.size()) {
    seen_ = {};
    seen_ = DeviceArray<int32_t>(device_, std::max<int64_t>(seen + seen / 2, 4096), MemoryUse::workspace);
  }
  seen_.upload(batch.seen.data(), seen);
  device_.ops().sample(device_.context(), {.logits = workspace_->logits.data(),
                                           .n = rows,
                                           .vocab = vocab,
                                           .rows = sample_rows_.data(),
                                           .seen = seen ? seen_.data() : nullptr,
                                           .ids = ids_.data()});
  if (batch.logprob_rows > 0) {
    device_.ops().logprobs(device_.context(), {.logits = workspace_->logits.data(),
                                               .n = batch.logprob_rows,
                                               .vocab = vocab,
                                               .targets = ids_.data(),
                                               .target_logprobs = logprobs_.data(),
                                               .top = std::min(batch.top, vocab),
                                               .top_ids = batch.top ? top_ids_.data() : nullptr,
                                               .top_logprobs = batch.top ? top_logprobs_.data() : nullptr});
    result.logprobs = logprobs_.download(batch.logprob_rows);
    const int64_t listed = int64_t{batch.logprob_rows} * std::min(batch.top, vocab);
    result.top_ids = top_ids_.download(listed);
    result.top_logprobs = top_logprobs_.download(listed);
  }
  result.ids = ids_.download(rows);
}

void Runner::score(const Batch& batch, StepResult& result) {
  const int rows = int(batch.scores.size());
  if (rows == 0) return;
  const int64_t vocab = model_->config.vocab_size;
  const float* logits = workspace_->logits.data() + int64_t(batch.sample_rows.size()) * vocab;
  score_targets_.upload(batch.score_targets.data(), rows);
  device_.ops().logprobs(device_.context(), {.logits = logits,
                                             .n = rows,
                                             .vocab = int(vocab),
                                             .targets = score_targets_.data(),
                                             .target_logprobs = logprobs_.data(),
                                             .top = 0,
                                             .top_ids = nullptr,
                                             .top_logprobs = nullptr});
  result.score_logprobs = logprobs_.download(rows);
  if (!keep_score_logits_) return;
  result.score_logits.resize(size_t(rows) * size_t(vocab));
  device_.ops().download(device_.context(), result.score_logits.data(), logits,
                         result.score_logits.size() * sizeof(float));
}

}  // namespace spinfer
