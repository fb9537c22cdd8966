// Plain C++, for CPUs without AVX2. Loops of 16 that compilers vectorise with what the baseline has (SSE2,
// NEON).
#include <bit>

#include "kernels/cpu/linear_microkernel.h"

namespace spinfer::cpu {
namespace {

/// to_float without branches, so that it vectorises.
inline float widen_bits(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
  // Exponent 31 must become 255: place it 112 higher for all, and 112 more for infinity and NaN.
  const uint32_t special = magnitude >= 0x7c00u ? 112u << 23 : 0;
  const uint32_t normal = (magnitude << 13) + (112u << 23) + special;
  const uint32_t subnormal = std::bit_cast<uint32_t>(float(int32_t(magnitude)) * 0x1p-24f);
  return std::bit_cast<float>(sign | (magnitude >= 0x0400u ? normal : subnormal));
}

struct Vec {
  float v[kLanes];
  static Vec load(const float* p) {
    Vec r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = p[i];
    return r;
  }
  static Vec load(const Half* p) {
    Vec r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = widen_bits(p[i].bits);
    return r;
  }
  static float widen_one(Half h) { return to_float(h); }
  void store(float* p) const {
    for (int i = 0; i < kLanes; ++i) p[i] = v[i];
  }
  static Vec fma(const Vec& a, const Vec& b, const Vec& c) {
    Vec r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = a.v[i] * b.v[i] + c.v[i];
    return r;
  }
  float sum() const {
    Vec s = *this;
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) s.v[i] += s.v[i + width];
    }
    return s.v[0];
  }
};

int64_t decode_strip(const uint64_t* bitmaps, const Half* values, Half* panels) {
  const Half* value = values;
  for (int i = 0; i < 4 * kStripRows * kLanes; ++i) panels[i] = Half{};
  for (int tc_tile = 0; tc_tile < 4; ++tc_tile, bitmaps += 4, panels += kStripRows * kLanes) {
    for (int i = 0; i < 4; ++i) {  // top left, bottom left, top right, bottom right
      Half* corner = panels + i % 2 * 8 * kLanes + i / 2 * 8;
      for (uint64_t bits = bitmaps[i]; bits; bits &= bits - 1) {
        const int bit = std::countr_zero(bits);
        corner[bit / 8 * kLanes + bit % 8] = *value++;
      }
    }
  }
  return value - values;
}

}  // namespace

constinit const LinearKernels kPortableKernels = {"portable", widen<Vec>, decode_strip,
                                                  accumulate<Vec, 2, 1, 2>, sum_lanes<Vec>};

}  // namespace spinfer::cpu
