// add_norm: residual addition, then RMS or layer norm, one row at a time in fp32.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/norm.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/simd-inl.h"

#include <cmath>

#include "kernels/cpu/ops.h"

HWY_BEFORE_NAMESPACE();
namespace spinfer::cpu::HWY_NAMESPACE {

void add(Half* h, const Half* delta, int64_t d) {
  for_each_vector(d, [&](int64_t i, int64_t count) {
    store_first(hn::Add(load_first(h + i, count), load_first(delta + i, count)), h + i, count);
  });
}

float mean(const Half* h, int64_t d) {
  Vec sum = zero();
  for_each_vector(d, [&](int64_t i, int64_t count) { sum = hn::Add(sum, load_first(h + i, count)); });
  return sum_of_lanes(sum) / float(d);
}

/// Mean of (h − center)², a second pass so that a large mean costs no digits.
float mean_square(const Half* h, int64_t d, float center) {
  Vec sum = zero();
  for_each_vector(d, [&](int64_t i, int64_t count) {
    Vec x = hn::Sub(load_first(h + i, count), set(center));
    if (count < kLanes) x = hn::IfThenElseZero(hn::FirstN(F32(), size_t(count)), x);
    sum = hn::MulAdd(x, x, sum);
  });
  return sum_of_lanes(sum) / float(d);
}

void add_norm_row(const AddNormArgs& a, int64_t row) {
  Half* h = a.h + row * a.d;
  if (a.delta) add(h, a.delta + row * a.d, a.d);
  if (!a.out) return;
  const float center = a.kind == NormKind::layer ? mean(h, a.d) : 0.0f;
  const float scale = 1.0f / std::sqrt(mean_square(h, a.d, center) + a.eps);
  Half* out = a.out + row * a.d;
  for_each_vector(a.d, [&](int64_t i, int64_t count) {
    Vec y = hn::Mul(hn::Sub(load_first(h + i, count), set(center)), set(scale));
    const Vec gain = a.gain ? load_first(a.gain + i, count) : set(1.0f);
    y = a.bias ? hn::MulAdd(y, gain, load_first(a.bias + i, count)) : hn::Mul(y, gain);
    store_first(y, out + i, count);
  });
}

}  // namespace spinfer::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace spinfer::cpu {

HWY_EXPORT(add_norm_row);

void add_norm(DeviceContext& context, const AddNormArgs& a) {
  for_rows(context, a.n, a.d, [&](int64_t row) { HWY_DYNAMIC_DISPATCH(add_norm_row)(a, row); });
}

}  // namespace spinfer::cpu
#endif
