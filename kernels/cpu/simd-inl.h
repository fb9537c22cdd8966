// Per-target SIMD vocabulary of the CPU ops: vectors of float, loaded from and stored to fp16 or fp32 rows.
// Highway compiles the including file once per target (portable scalar, AVX2+FMA+F16C, AVX-512) and picks at
// run time. Include after hwy/foreach_target.h.
#if defined(SPINFER_KERNELS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SPINFER_KERNELS_CPU_SIMD_INL_H_
#undef SPINFER_KERNELS_CPU_SIMD_INL_H_
#else
#define SPINFER_KERNELS_CPU_SIMD_INL_H_
#endif

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>

#include "kernels/half.h"

HWY_BEFORE_NAMESPACE();
namespace spinfer::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using Vec = hn::Vec<F32>;

inline constexpr int64_t kLanes = int64_t{hn::MaxLanes(F32())};

HWY_INLINE Vec load(const float* x) {
  return hn::LoadU(F32(), x);
}
HWY_INLINE void store(Vec v, float* x) {
  hn::StoreU(v, F32(), x);
}

HWY_INLINE Vec load(const Half* x) {
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
  float buffer[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) buffer[i] = to_float(x[i]);
  return load(buffer);
#else
  const hn::Rebind<hwy::float16_t, F32> d16;
  const hn::RebindToUnsigned<decltype(d16)> bits;
  return hn::PromoteTo(F32(), hn::BitCast(d16, hn::LoadU(bits, &x->bits)));
#endif
}

HWY_INLINE void store(Vec v, Half* x) {
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
  float buffer[kLanes];
  store(v, buffer);
  for (int64_t i = 0; i < kLanes; ++i) x[i] = to_half(buffer[i]);
#else
  const hn::Rebind<hwy::float16_t, F32> d16;
  const hn::RebindToUnsigned<decltype(d16)> bits;
  hn::StoreU(hn::BitCast(bits, hn::DemoteTo(d16, v)), bits, &x->bits);
#endif
}

/// The first `count` ≤ kLanes elements; lanes past them are zero and nothing past them is read or written.
template <class T>
HWY_INLINE Vec load_first(const T* x, int64_t count) {
  if (kLanes == 1 || HWY_LIKELY(count == kLanes)) return load(x);
  T buffer[kLanes] = {};
  std::copy_n(x, count, buffer);
  return load(buffer);
}
template <class T>
HWY_INLINE void store_first(Vec v, T* x, int64_t count) {
  if (kLanes == 1 || HWY_LIKELY(count == kLanes)) return store(v, x);
  T buffer[kLanes];
  store(v, buffer);
  std::copy_n(buffer, count, x);
}

/// body(i, count) for every vector of a row of n elements; count < kLanes only in the last one.
template <class Body>
HWY_INLINE void for_each_vector(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, kLanes);
  if (i < n) body(i, n - i);
}

HWY_INLINE Vec set(float x) {
  return hn::Set(F32(), x);
}
HWY_INLINE Vec zero() {
  return hn::Zero(F32());
}
HWY_INLINE float sum_of_lanes(Vec v) {
  return hn::GetLane(hn::SumOfLanes(F32(), v));
}
HWY_INLINE float max_of_lanes(Vec v) {
#if HWY_TARGET == HWY_EMU128  // its MaxOfLanes never returns less than the lowest finite number
  float buffer[kLanes];
  store(v, buffer);
  return *std::max_element(buffer, buffer + kLanes);
#else
  return hn::GetLane(hn::MaxOfLanes(F32(), v));
#endif
}

/// e^x within 1 ulp; 0 for −infinity. NaN stays NaN, which Highway's Exp and Min do not promise.
HWY_INLINE Vec exp(Vec x) {
  const F32 d;
  const Vec result =
      hn::Exp(d, hn::Min(x, set(104.0f)));  // Exp is undefined above 104, e^89 is already infinity
  return hn::IfThenElse(hn::IsNaN(x), x, result);
}

}  // namespace spinfer::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
