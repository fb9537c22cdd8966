// AVX-512: one register is the 16 lanes of a row; vpexpandw puts 32 packed values at their bits.
#include <immintrin.h>

#include "kernels/cpu/linear_microkernel.h"

namespace spinfer::cpu {
namespace {

struct Avx512 {
  using Reg = __m512;
  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static Reg load(const Half* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store(float* p, Reg v) { _mm512_storeu_ps(p, v); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static float sum8(__m256 eight) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static float sum(Reg v) {
    return sum8(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
  }
  static float widen_one(Half h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h.bits))); }
};

/// Four rows × eight columns: the values of 32 bits of a bitmap at their places. From a register, not from
/// memory: expanding loads are microcoded on AMD.
inline __m512i expand(uint32_t bits, const Half* values) {
  __m512i packed = _mm512_loadu_si512(values);
  asm("" : "+v"(packed));  // or the compiler folds the load into the expansion
  return _mm512_maskz_expand_epi16(bits, packed);
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

inline __mmask32 load_mask(const uint64_t* bitmap, int half) {
  __mmask32
      mask;  // kmov from memory: through a general register it would cost a shift on the busiest port besides
  asm("kmovd %1, %0" : "=k"(mask) : "m"(reinterpret_cast<const char*>(bitmap)[4 * half]));
  return mask;
}

// The fused kernel of one token keeps two rows × eight columns in a register, as expansion yields them, so
// nothing is permuted or stored: acc[part][4][2 rows][8 lanes], part as in the format (top left, bottom left,
// top right, bottom right). Lanes 0…7 of a row are in a left part, 8…15 in the right part beside it. 64
// weights take 12 clocks of the shuffle port (2 expansions 4, 2 masks 2, 2 extractions 2, 4 conversions 4):
// 20 GB/s of packed weights a core at 50 % and 3.3 GHz on a Granite Rapids, above what it reads from memory.
// A round trip through the L1 cache instead of the extractions was no faster.
int64_t accumulate_strip(const uint64_t* bitmaps, const Half* values, const float* x, float* acc) {
  const Half* value = values;
  // All loops over the sums are unrolled: otherwise GCC stores each after each use (4096×11008, 50 %, two
  // cores of an AMD EPYC: 2112 instead of 1652 µs).
  __m512 sums[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) sums[i] = _mm512_loadu_ps(acc + i * kLanes);
  for (int tc_tile = 0; tc_tile < 4; ++tc_tile) {
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part, ++bitmaps) {
      const __m512 columns = _mm512_broadcast_f32x8(_mm256_loadu_ps(x + tc_tile * 16 + part / 2 * 8));
      const __m512i upper = expand(load_mask(bitmaps, 0), value);
      const __m512i lower = expand(load_mask(bitmaps, 1), value + _mm_popcnt_u32(uint32_t(*bitmaps)));
      value += _mm_popcnt_u64(*bitmaps);
      __builtin_prefetch(value + kPrefetchValues);  // here, not once a strip: bursts fill the miss buffers
      __builtin_prefetch(value + kPrefetchValues + 32);
      if (part == 0) __builtin_prefetch(bitmaps + kPrefetchBitmaps);
      const int s = part * 4;
      sums[s] = _mm512_fmadd_ps(_mm512_cvtph_ps(_mm512_castsi512_si256(upper)), columns, sums[s]);
      sums[s + 1] =
          _mm512_fmadd_ps(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(upper, 1)), columns, sums[s + 1]);
      sums[s + 2] = _mm512_fmadd_ps(_mm512_cvtph_ps(_mm512_castsi512_si256(lower)), columns, sums[s + 2]);
      sums[s + 3] =
          _mm512_fmadd_ps(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(lower, 1)), columns, sums[s + 3]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) _mm512_storeu_ps(acc + i * kLanes, sums[i]);
  return value - values;
}

void sum_strip(const float* acc, float* sums) {
  for (int i = 0; i < 8;
       ++i, sums += 2) {  // pairs of rows: register i % 4 of part i / 4, and of part i / 4 + 2
    const __m512 rows =
        _mm512_add_ps(_mm512_loadu_ps(acc + i * kLanes), _mm512_loadu_ps(acc + (i + 8) * kLanes));
    sums[0] = Avx512::sum8(_mm512_castps512_ps256(rows));
    sums[1] = Avx512::sum8(_mm512_extractf32x8_ps(rows, 1));
  }
}

/// Two tokens: a tenth faster so than by way of the L1 cache, 1.11 instead of 1.03 times as fast as dense
/// (cpu_linear_tokens_amd_epyc.json and the one before it).
constexpr int kFusedTokens = 2;

}  // namespace

constinit const LinearKernels kAvx512Kernels = {"avx512",          widen<Avx512>, decode_strip,
                                                accumulate_strip,  kFusedTokens,  accumulate<Avx512, 4, 4, 4>,
                                                sum_lanes<Avx512>, sum_strip};

}  // namespace spinfer::cpu
