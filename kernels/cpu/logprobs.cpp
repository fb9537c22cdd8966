// logprobs: log-softmax of chosen tokens and of the most probable ones.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <vector>

#include "kernels/check.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/vocabulary.h"

namespace spinfer::cpu {
namespace {

/// The `top` largest logits, lower id first among equals: a heap of the best so far, its worst on top.
std::vector<int32_t> top_ids(const float* logits, int vocab, int top) {
  const auto before = [logits](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  std::vector<int32_t> best;
  best.reserve(size_t(top));
  for (int32_t id = 0; id < vocab; ++id) {
    if (int(best.size()) == top) {
      if (!before(id, best.front())) continue;
      std::pop_heap(best.begin(), best.end(), before);
      best.pop_back();
    }
    best.push_back(id);
    std::push_heap(best.begin(), best.end(), before);
  }
  std::sort_heap(best.begin(), best.end(), before);
  return best;
}

void mark_unusable(const LogprobsArgs& a, int64_t row) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  if (a.targets && a.target_logprobs) a.target_logprobs[row] = kNan;
  std::iota(a.top_ids + row * a.top, a.top_ids + (row + 1) * a.top, 0);
  std::fill_n(a.top_logprobs + row * a.top, a.top, kNan);
}

}  // namespace

void logprobs(DeviceContext& context, const LogprobsArgs& a) {
  check(a.top >= 0 && a.top <= a.vocab, "logprobs: top {} must be 0…{}, the vocabulary", a.top, a.vocab);
  for_rows(context, a.n, a.vocab, [&](int64_t row) {
    const float* logits = a.logits + row * a.vocab;
    const std::optional<float> usable_max = max_logit(logits, a.vocab);
    if (!usable_max) return mark_unusable(a, row);
    const float max = *usable_max;
    const double log_sum = std::log(softmax_sum(logits, a.vocab, max));
    const auto logprob = [&](int32_t id) { return float(double(logits[id]) - max - log_sum); };
    if (a.targets && a.target_logprobs) {
      const int32_t target = a.targets[row];
      check(target < a.vocab, "logprobs: target {} is outside the vocabulary of {}", target, a.vocab);
      a.target_logprobs[row] = target < 0 ? 0.0f : logprob(target);
    }
    if (a.top == 0) return;
    const std::vector<int32_t> best = top_ids(logits, a.vocab, a.top);
    std::copy(best.begin(), best.end(), a.top_ids + row * a.top);
    std::transform(best.begin(), best.end(), a.top_logprobs + row * a.top, logprob);
  });
}

}  // namespace spinfer::cpu
