// Plain C++, for CPUs without AVX2. Loops of 16 that compilers vectorise with what the baseline has (SSE2,
// NEON).
#include <bit>

#include "kernels/cpu/linear_microkernel.h"

namespace spinfer::cpu {
namespace {

// Vectors of four, which GCC and clang map to SSE2, NEON or whatever there is (plain arrays they do not keep
// in registers: 20 times slower).
using F4 = float __attribute__((vector_size(16)));
using U4 = uint32_t __attribute__((vector_size(16)));
using H4 = uint16_t __attribute__((vector_size(8)));
using I4 = int32_t __attribute__((vector_size(16)));

/// to_float of four.
inline F4 widen4(const Half* p) {
  H4 halves;
  __builtin_memcpy(&halves, p, sizeof(halves));
  const U4 bits = __builtin_convertvector(halves, U4);
  const U4 magnitude = bits & 0x7fffu;
  // Exponent 31 must become 255: place it 112 higher for all, and 112 more for infinity and NaN.
  const U4 special = U4(magnitude >= 0x7c00u) & (112u << 23);
  const U4 normal = (magnitude << 13) + (112u << 23) + special;
  const auto subnormal = U4(__builtin_convertvector(I4(magnitude), F4) * 0x1p-24f);
  const U4 is_normal = U4(magnitude >= 0x0400u);
  return F4((bits & 0x8000u) << 16 | (normal & is_normal) | (subnormal & ~is_normal));
}

struct Portable {
  struct Reg {
    F4 v[4];
  };
  static Reg load(const float* p) {
    Reg r;
    __builtin_memcpy(&r, p, sizeof(r));
    return r;
  }
  static Reg load(const Half* p) { return {{widen4(p), widen4(p + 4), widen4(p + 8), widen4(p + 12)}}; }
  static void store(float* p, const Reg& r) { __builtin_memcpy(p, &r, sizeof(r)); }
  static Reg fma(const Reg& a, const Reg& b, const Reg& c) {
    return {{a.v[0] * b.v[0] + c.v[0], a.v[1] * b.v[1] + c.v[1], a.v[2] * b.v[2] + c.v[2],
             a.v[3] * b.v[3] + c.v[3]}};
  }
  static float sum(const Reg& r) {
    const F4 four = (r.v[0] + r.v[2]) + (r.v[1] + r.v[3]);
    return (four[0] + four[2]) + (four[1] + four[3]);
  }
  static float widen_one(Half h) { return to_float(h); }
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

constinit const LinearKernels kPortableKernels = {
    "portable",          widen<Portable>,
    decode_strip,        accumulate_strip<Portable, decode_strip>,
    /*fused_tokens=*/1,  accumulate<Portable, 2, 1, 2>,
    sum_lanes<Portable>, sum_strip<Portable>};

}  // namespace spinfer::cpu
