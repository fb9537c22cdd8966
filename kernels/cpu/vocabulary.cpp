#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/vocabulary.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/simd-inl.h"

#include "kernels/cpu/vocabulary.h"

#include <algorithm>
#include <cmath>
#include <limits>

HWY_BEFORE_NAMESPACE();
namespace spinfer::cpu::HWY_NAMESPACE {

/// NaN if any logit is NaN, else the maximum.
float max_or_nan(const float* logits, int64_t vocab) {
  Vec max = set(-std::numeric_limits<float>::infinity()), nan = zero();
  for_each_vector(vocab, [&](int64_t i, int64_t count) {
    Vec x = load_first(logits + i, count);
    if (count < kLanes) x = hn::IfThenElse(hn::FirstN(F32(), size_t(count)), x, set(logits[i]));
    nan = hn::IfThenElse(hn::IsNaN(x), x, nan);
    max = hn::Max(max, x);
  });
  return std::isnan(sum_of_lanes(nan)) ? sum_of_lanes(nan) : max_of_lanes(max);
}

void softmax_weights(const float* logits, int64_t vocab, float max, float temperature, float* weights) {
  for_each_vector(vocab, [&](int64_t i, int64_t count) {
    const Vec x = hn::Sub(load_first(logits + i, count), set(max));
    store_first(exp(hn::Div(x, set(temperature))), weights + i, count);
  });
}

double softmax_sum(const float* logits, int64_t vocab, float max) {
  constexpr int64_t kPiece = 1024;
  double total = 0;
  for (int64_t begin = 0; begin < vocab; begin += kPiece) {
    Vec sum = zero();
    for_each_vector(std::min(kPiece, vocab - begin), [&](int64_t i, int64_t count) {
      Vec w = exp(hn::Sub(load_first(logits + begin + i, count), set(max)));
      if (count < kLanes) w = hn::IfThenElseZero(hn::FirstN(F32(), size_t(count)), w);
      sum = hn::Add(sum, w);
    });
    total += sum_of_lanes(sum);
  }
  return total;
}

}  // namespace spinfer::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace spinfer::cpu {

HWY_EXPORT(max_or_nan);
HWY_EXPORT(softmax_weights);
HWY_EXPORT(softmax_sum);

std::optional<float> max_logit(const float* logits, int64_t vocab) {
  const float max = HWY_DYNAMIC_DISPATCH(max_or_nan)(logits, vocab);
  return std::isfinite(max) ? std::optional(max) : std::nullopt;
}

void softmax_weights(const float* logits, int64_t vocab, float max, float temperature, float* weights) {
  HWY_DYNAMIC_DISPATCH(softmax_weights)(logits, vocab, max, temperature, weights);
}

double softmax_sum(const float* logits, int64_t vocab, float max) {
  return HWY_DYNAMIC_DISPATCH(softmax_sum)(logits, vocab, max);
}

}  // namespace spinfer::cpu
#endif
