// AVX-512: one register is the 16 lanes of a row; vpexpandw puts 32 packed values at their bits.
#include <immintrin.h>

#include "kernels/cpu/linear_microkernel.h"

namespace spinfer::cpu {
namespace {

struct Vec {
  __m512 v;
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const Half* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static float widen_one(Half h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h.bits))); }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  float sum() const {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
};

/// Four rows × eight columns: the values of 32 bits of a bitmap at their places. From a register, not from
/// memory: expanding loads are microcoded on AMD (KERNEL_NOTES section 7: +25 %).
inline __m512i expand(uint32_t bits, const Half* values) {
  return _mm512_maskz_expand_epi16(bits, _mm512_loadu_si512(values));
}

int64_t decode_strip(const uint64_t* bitmaps, const Half* values, Half* panels) {
  // Pairs the left and right eight columns of rows 0, 1 and 2, 3 of four rows.
  const __m512i rows01 = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
  const __m512i rows23 = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
  const Half* value = values;
  for (int tc_tile = 0; tc_tile < 4; ++tc_tile, bitmaps += 4, panels += kStripRows * kLanes) {
    __m512i part[8];  // top left, bottom left, top right, bottom right, each its upper and lower four rows
    for (int i = 0; i < 4; ++i) {
      const auto upper = uint32_t(bitmaps[i]), lower = uint32_t(bitmaps[i] >> 32);
      part[2 * i] = expand(upper, value);
      part[2 * i + 1] = expand(lower, value + _mm_popcnt_u32(upper));
      value += _mm_popcnt_u64(bitmaps[i]);
    }
    for (int i = 0; i < 4; ++i) {  // rows 4i … 4i + 3
      Half* out = panels + i * 4 * kLanes;
      _mm512_storeu_si512(out, _mm512_permutex2var_epi64(part[i], rows01, part[i + 4]));
      _mm512_storeu_si512(out + 2 * kLanes, _mm512_permutex2var_epi64(part[i], rows23, part[i + 4]));
    }
  }
  return value - values;
}

}  // namespace

constinit const LinearKernels kAvx512Kernels = {"avx512", widen<Vec>, decode_strip, accumulate<Vec, 4, 4, 4>,
                                                sum_lanes<Vec>};

}  // namespace spinfer::cpu
