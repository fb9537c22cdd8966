#include "engine/runner.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "engine/memory_plan.h"
#include "engine/request.h"

namespace spinfer {
namespace {

constexpr int64_t kAlign = 64;  // int32 elements: sections begin at 256 bytes

int64_t aligned(int64_t count) {
  return (count + kAlign - 1) / kAlign * kAlign;
}

constexpr int64_t kRowWords = sizeof(SampleRow) / sizeof(int32_t);
static_assert(sizeof(SampleRow) % sizeof(int32_t) == 0);

/// int32 elements of the index arrays of the largest step: token_ids, positions, slots; query_start,
/// context_len; block_table; logit_rows; sample rows; score targets.
int64_t index_elements(const StepLimits& l) {
  return 3 * aligned(l.max_tokens) + aligned(l.max_seqs + 1) + aligned(l.max_seqs) +
         aligned(l.max_seqs * l.max_blocks) + 2 * aligned(l.max_logits) + aligned(l.max_seqs * kRowWords);
}

}  // namespace

Runner::Runner(const Backend& backend, const DeviceOptions& options, Shard shard)
    : device_(backend, options), shard_(shard) {}

int64_t Runner::index_bytes(const StepLimits& l) {
  const int64_t words =
      index_elements(l) + l.max_seqs + int64_t{l.max_logits} + 2 * int64_t{l.max_seqs} * kMaxLogprobs;
  return words * int64_t{sizeof(int32_t)};
}

int64_t Runner::kv_block_bytes(const ModelConfig& config, int world, int block_size) {
  const int64_t heads = (config.kv_heads + world - 1) / world;
  return 2 * config.layers * heads * config.head_dim * block_size * int64_t{sizeof(Half)};
}

void Runner::allocate(const StepLimits& limits, int64_t kv_blocks, int block_size) {
  const MemoryUse use = MemoryUse::workspace;
  workspace_ = std::make_unique<Workspace>(device_, *model_, limits.max_tokens, limits.max_logits);
  index_ = DeviceArray<int32_t>(device_, index_elements(limits), use);
  ids_ = DeviceArray<int32_t>(device_, limits.max_seqs, use);
  logprobs_ = DeviceArray<float>(device_, limits.max_logits, use);
  top_ids_ = DeviceArray<int32_t>(device_, int64_t{limits.max_seqs} * kMaxLogprobs, use);
  top_logprobs_ = DeviceArray<float>(device_, int64_t{limits.max_seqs} * kMaxLogprobs, use);

  max_seqs_ = limits.max_seqs;
  max_blocks_ = limits.max_blocks;
  for (InFlight& results : in_flight_) {
    results.ids = HostArray<int32_t>(device_, limits.max_seqs);
    results.logprobs = HostArray<float>(device_, limits.max_seqs);
    results.top_ids = HostArray<int32_t>(device_, top_ids_.size());
    results.top_logprobs = HostArray<float>(device_, top_ids_.size());
    results.score_logprobs = HostArray<float>(device_, limits.max_logits);
  }

  kv_.block_size = block_size;
  const int64_t elements = kv_blocks * model_->kv_heads * block_size * model_->config.head_dim;
  for (int layer = 0; layer < model_->config.layers; ++layer) {
    for (int i = 0; i < 2; ++i) kv_arrays_.emplace_back(device_, elements, MemoryUse::kv_cache);
    kv_.layers.push_back({kv_arrays_.end()[-2].data(), kv_arrays_.end()[-1].data()});
  }
}

void Runner::submit(const Batch& batch) {
  assert(batch.tokens() > 0 && submitted_ - collected_ < kStepsInFlight);
  InFlight& results = in_flight_[submitted_++ % kStepsInFlight];
  results.samples = results.logprob_rows = results.scores = 0;
  results.listed = 0;
  Uploaded uploaded;
  if (graphs_in_use_ && is_decode(batch)) {
    const DecodeShape shape = decode_shape(batch, kv_.block_size, max_seqs_, max_blocks_);
    uploaded = upload(padded(batch, shape, kv_.block_size));
    results.begin = device_.ops().mark(device_.context());
    run_decode(uploaded.forward, shape);
  } else {
    uploaded = upload(batch);
    results.begin = device_.ops().mark(device_.context());
    forward(device_, *model_, uploaded.forward, kv_, *workspace_);
  }
  if (shard_.rank == 0 || feeds_tokens_back_) sample(batch, uploaded, results);
  if (shard_.rank == 0) score(batch, uploaded, results);
  results.end = device_.ops().mark(device_.context());
}

StepResult Runner::collect() {
  assert(collected_ < submitted_);
  InFlight& from = in_flight_[collected_++ % kStepsInFlight];
  device_.ops().wait(device_.context(), from.end);
  const auto take = [](const auto& array, int64_t count) {
    return std::vector(array.data(), array.data() + count);
  };
  StepResult result;
  result.ids = take(from.ids, from.samples);
  result.logprobs = take(from.logprobs, from.logprob_rows);
  result.top_ids = take(from.top_ids, from.listed);
  result.top_logprobs = take(from.top_logprobs, from.listed);
  result.score_logprobs = take(from.score_logprobs, from.scores);
  result.score_logits = std::move(from.score_logits);
  if (last_end_) result.idle_seconds = device_.ops().between(device_.context(), *last_end_, from.begin);
  last_end_ = from.end;
  return result;
}

/// The first step of a shape runs as it is, and finds what must be tuned or allocated; the next one is
/// recorded.
void Runner::run_decode(const ForwardBatch& batch, DecodeShape shape) {
  Recorded& recorded = recorded_[shape];
  if (recorded.work.replay()) return;
  const auto pass = [this, batch] { forward(device_, *model_, batch, kv_, *workspace_); };
  if (recorded.ran_before) {
    recorded.work = RecordedWork(device_, pass);
    if (recorded.work.replay()) return;
  }
  pass();
  recorded.ran_before = true;
}

void Runner::leave_out(uint32_t kinds) {
  device_.ops().synchronize(device_.context());
  recorded_.clear();
  device_.ops().leave_out(device_.context(), kinds);
}

Runner::Uploaded Runner::upload(const Batch& batch) {
  staging_.clear();
  const auto place_words = [this](const void* words, size_t count) {
    const int32_t* address = index_.data() + staging_.size();
    const size_t begin = staging_.size();
    staging_.resize(begin + size_t(aligned(int64_t(count))));
    if (count) std::memcpy(staging_.data() + begin, words, count * sizeof(int32_t));
    return address;
  };
  const auto place = [&](const std::vector<int32_t>& values) {
    return place_words(values.data(), values.size());
  };
  Uploaded uploaded;
  ForwardBatch& f = uploaded.forward;
  f.n = batch.tokens();
  f.token_ids = place(batch.token_ids);
  f.newest_ids = ids_.data();
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
  uploaded.sample_rows = reinterpret_cast<const SampleRow*>(
      place_words(batch.sample_rows.data(), batch.sample_rows.size() * size_t(kRowWords)));
  uploaded.score_targets = place(batch.score_targets);
  assert(int64_t(staging_.size()) <= index_.size());
  index_.upload(staging_.data(), int64_t(staging_.size()));
  return uploaded;
}

template <class T>
const T* Runner::place_list(const std::vector<T>& list, DeviceArray<T>& array) {
  const int64_t size = int64_t(list.size());
  if (size == 0) return nullptr;
  if (size > array.size()) {
    array = {};
    array = DeviceArray<T>(device_, std::max<int64_t>(size + size / 2, 4096), MemoryUse::workspace);
  }
  array.upload(list.data(), size);
  return array.data();
}

void Runner::sample(const Batch& batch, const Uploaded& uploaded, InFlight& results) {
  const int rows = int(batch.sample_rows.size());
  if (rows == 0) return;
  const int vocab = int(model_->config.vocab_size);
  device_.ops().sample(device_.context(), {.logits = workspace_->logits.data(),
                                           .n = rows,
                                           .vocab = vocab,
                                           .rows = uploaded.sample_rows,
                                           .seen = place_list(batch.seen, seen_),
                                           .ids = ids_.data(),
                                           .biases = place_list(batch.biases, biases_)});
  if (shard_.rank != 0) return;  // the same ids as rank 0's: the logits are the same bits
  results.samples = rows;
  ids_.download_later(results.ids, rows);
  if (batch.logprob_rows == 0) return;
  device_.ops().logprobs(device_.context(), {.logits = workspace_->logits.data(),
                                             .n = batch.logprob_rows,
                                             .vocab = vocab,
                                             .targets = ids_.data(),
                                             .target_logprobs = logprobs_.data(),
                                             .top = std::min(batch.top, vocab),
                                             .top_ids = batch.top ? top_ids_.data() : nullptr,
                                             .top_logprobs = batch.top ? top_logprobs_.data() : nullptr});
  results.logprob_rows = batch.logprob_rows;
  results.listed = int64_t{batch.logprob_rows} * std::min(batch.top, vocab);
  logprobs_.download_later(results.logprobs, results.logprob_rows);
  top_ids_.download_later(results.top_ids, results.listed);
  top_logprobs_.download_later(results.top_logprobs, results.listed);
}

void Runner::score(const Batch& batch, const Uploaded& uploaded, InFlight& results) {
  const int rows = int(batch.scores.size());
  if (rows == 0) return;
  const int64_t vocab = model_->config.vocab_size;
  const float* logits = workspace_->logits.data() + int64_t(batch.sample_rows.size()) * vocab;
  device_.ops().logprobs(device_.context(), {.logits = logits,
                                             .n = rows,
                                             .vocab = int(vocab),
                                             .targets = uploaded.score_targets,
                                             .target_logprobs = logprobs_.data(),
                                             .top = 0,
                                             .top_ids = nullptr,
                                             .top_logprobs = nullptr});
  results.scores = rows;
  logprobs_.download_later(results.score_logprobs, rows);
  if (!keep_score_logits_) return;
  results.score_logits.resize(size_t(rows) * size_t(vocab));
  device_.ops().download(device_.context(), results.score_logits.data(), logits,
                         results.score_logits.size() * sizeof(float));
}

}  // namespace spinfer
