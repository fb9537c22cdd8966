// AVX2 + FMA + F16C: two registers are the 16 lanes of a row; a byte shuffle per eight weights puts values at
// their bits.
#include <immintrin.h>

#include "kernels/cpu/linear_microkernel.h"

namespace spinfer::cpu {
namespace {

struct Avx2 {
  struct Reg {
    __m256 low, high;
  };
  static __m256 load8(const Half* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Reg load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static Reg load(const Half* p) { return {load8(p), load8(p + 8)}; }
  static void store(float* p, Reg v) {
    _mm256_storeu_ps(p, v.low);
    _mm256_storeu_ps(p + 8, v.high);
  }
  static Reg fma(Reg a, Reg b, Reg c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static float sum(Reg v) {
    const __m256 eight = _mm256_add_ps(v.low, v.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static float widen_one(Half h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h.bits))); }
};

/// For each bitmap row of eight bits the pshufb control that moves the next values to the set bits and zero
/// to the others.
struct ExpandTable {
  alignas(16) uint8_t shuffle[256][16];
};
constexpr ExpandTable make_expand_table() {
  ExpandTable table{};
  for (int bits = 0; bits < 256; ++bits) {
    int value = 0;
    for (int i = 0; i < 8; ++i) {
      const bool set = bits >> i & 1;
      table.shuffle[bits][2 * i] = set ? uint8_t(2 * value) : 0x80;
      table.shuffle[bits][2 * i + 1] = set ? uint8_t(2 * value + 1) : 0x80;
      value += set;
    }
  }
  return table;
}
constexpr ExpandTable kExpand = make_expand_table();

int64_t decode_strip(const uint64_t* bitmaps, const Half* values, Half* panels) {
  const Half* value = values;
  for (int tc_tile = 0; tc_tile < 4; ++tc_tile, bitmaps += 4, panels += kStripRows * kLanes) {
    for (int i = 0; i < 4; ++i) {  // top left, bottom left, top right, bottom right
      Half* out = panels + i % 2 * 8 * kLanes + i / 2 * 8;
      for (int r = 0; r < 8; ++r, out += kLanes) {
        const auto bits = uint8_t(bitmaps[i] >> (8 * r));
        const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(value));
        const __m128i control = _mm_load_si128(reinterpret_cast<const __m128i*>(kExpand.shuffle[bits]));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_shuffle_epi8(packed, control));
        value += _mm_popcnt_u32(bits);
      }
    }
  }
  return value - values;
}

}  // namespace

constinit const LinearKernels kAvx2Kernels = {"avx2",
                                              widen<Avx2>,
                                              decode_strip,
                                              accumulate_strip<Avx2, decode_strip>,
                                              /*fused_tokens=*/1,
                                              accumulate<Avx2, 2, 2, 4>,
                                              sum_lanes<Avx2>,
                                              sum_strip<Avx2>};

}  // namespace spinfer::cpu
