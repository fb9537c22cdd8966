// Sampling: the order of steps, ties and the draw are specified at SampleRow (kernels/ops.h).
#include <algorithm>
#include <cassert>
#include <numeric>
#include <optional>
#include <span>

#include "kernels/check.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/vocabulary.h"

namespace spinfer::cpu {
namespace {

/// Scratch of one thread, [vocab] each.
struct SampleScratch {
  float* logits;   ///< biased and penalised copy
  float* weights;  ///< exp((logit − max) / temperature)
  int32_t* ids;    ///< token ids, the most probable first as far as they are sorted
};

/// A copy of the logits with biases and the repetition penalty applied, or the logits themselves where there
/// are none.
const float* adjusted(const SampleArgs& a, const SampleRow& row, const float* logits, float* copy) {
  const bool penalised = row.repeat_penalty != 1.0f && row.seen_begin != row.seen_end;
  if (!penalised && row.bias_begin == row.bias_end) return logits;
  std::copy_n(logits, a.vocab, copy);
  for (int32_t i = row.bias_begin; i < row.bias_end; ++i) {
    const auto [id, bias] = a.biases[i];
    check(id >= 0 && id < a.vocab, "sample: biased token {} is outside the vocabulary of {}", id, a.vocab);
    copy[id] += bias;
  }
  if (!penalised) return copy;
  for (int32_t i = row.seen_begin; i < row.seen_end; ++i) {
    const int32_t id = a.seen[i];
    check(id >= 0 && id < a.vocab, "sample: seen token {} is outside the vocabulary of {}", id, a.vocab);
    copy[id] = copy[id] > 0 ? copy[id] / row.repeat_penalty : copy[id] * row.repeat_penalty;
  }
  return copy;
}

/// Token ids by probability, sorted only as far as asked: a whole vocabulary is seldom needed.
class RankedIds {
 public:
  RankedIds(const float* logits, std::span<int32_t> ids) : logits_(logits), ids_(ids) {
    std::iota(ids.begin(), ids.end(), 0);
  }
  /// The id of the given rank, 0 being the most probable; equals rank by id.
  int32_t at(size_t rank) {
    if (rank >= sorted_) sort_first(std::max(rank + 1, std::max<size_t>(64, sorted_ * 4)));
    return ids_[rank];
  }
  /// Sorts the first `count` ids at least.
  void sort_first(size_t count) {
    count = std::min(count, ids_.size());
    if (count <= sorted_) return;
    const auto before = [this](int32_t a, int32_t b) {
      return logits_[a] != logits_[b] ? logits_[a] > logits_[b] : a < b;
    };
    const auto begin = ids_.begin() + std::ptrdiff_t(sorted_), end = ids_.begin() + std::ptrdiff_t(count);
    if (end != ids_.end()) std::nth_element(begin, end, ids_.end(), before);
    std::sort(begin, end, before);
    sorted_ = count;
  }

 private:
  const float* logits_;
  std::span<int32_t> ids_;
  size_t sorted_ = 0;
};

/// top-k, then top-p: how many of the most probable tokens stay.
size_t count_kept(const SampleRow& row, RankedIds& ranked, std::span<const float> weights) {
  const size_t vocab = weights.size();
  const size_t top_k = row.top_k > 0 ? std::min(size_t(row.top_k), vocab) : vocab;
  if (row.top_p >= 1) return top_k;
  double mass = 0;
  if (top_k < vocab) {
    ranked.sort_first(top_k);
    for (size_t rank = 0; rank < top_k; ++rank) mass += weights[size_t(ranked.at(rank))];
  } else {
    mass = std::accumulate(weights.begin(), weights.end(), 0.0);
  }
  double sum = 0;
  for (size_t rank = 0; rank < top_k; ++rank) {
    sum += weights[size_t(ranked.at(rank))];
    if (sum >= double(row.top_p) * mass) return rank + 1;
  }
  return top_k;
}

/// Sets the weights of all but the `kept` most probable tokens to zero.
void drop_others(RankedIds& ranked, size_t kept, std::span<float> weights, std::span<int32_t> ids) {
  if (kept == weights.size()) return;
  ranked.sort_first(kept);
  for (size_t rank = kept; rank < ids.size(); ++rank) weights[size_t(ids[rank])] = 0;
}

/// The first token, by id, whose running sum of weights exceeds u · their total.
int32_t draw(std::span<const float> weights, float u) {
  const double target = double(u) * std::accumulate(weights.begin(), weights.end(), 0.0);
  double sum = 0;
  for (size_t id = 0; id < weights.size(); ++id) {
    sum += weights[id];
    if (sum > target) return int32_t(id);
  }
  assert(false);  // u < 1 and the largest weight is 1, so the last sum exceeds the target
  return int32_t(weights.size()) - 1;
}

int32_t sample_row(const SampleArgs& a, int64_t index, const SampleScratch& scratch) {
  const SampleRow& row = a.rows[index];
  const float* logits = adjusted(a, row, a.logits + index * a.vocab, scratch.logits);
  const std::optional<float> max = max_logit(logits, a.vocab);
  if (!max) return kNoToken;
  if (row.temperature == 0) return int32_t(std::find(logits, logits + a.vocab, *max) - logits);

  const std::span<float> weights(scratch.weights, size_t(a.vocab));
  softmax_weights(logits, a.vocab, *max, row.temperature, weights.data());
  if ((row.top_k > 0 && row.top_k < a.vocab) || row.top_p < 1) {
    const std::span<int32_t> ids(scratch.ids, size_t(a.vocab));
    RankedIds ranked(logits, ids);
    drop_others(ranked, count_kept(row, ranked, weights), weights, ids);
  }
  if (row.min_p > 0)
    std::replace_if(
        weights.begin(), weights.end(), [&](float w) { return w < row.min_p; }, 0.0f);
  return draw(weights, sample_uniform(row.seed, row.step));
}

}  // namespace

void sample(DeviceContext& context, const SampleArgs& a) {
  if (a.n == 0) return;
  const size_t vocab = size_t(a.vocab);
  const int threads = std::min(context.pool.threads(), a.n);
  float* floats = context.scratch.get<float>(size_t(threads) * vocab * 3);
  const auto some_rows = [&](int thread, int) {
    if (thread >= threads) return;
    float* memory = floats + size_t(thread) * vocab * 3;
    const SampleScratch scratch{memory, memory + vocab, reinterpret_cast<int32_t*>(memory + 2 * vocab)};
    for (int64_t i = thread; i < a.n; i += threads) a.ids[i] = sample_row(a, i, scratch);
  };
  if (threads == 1) return some_rows(0, 1);
  context.pool.run(some_rows);
}

}  // namespace spinfer::cpu
