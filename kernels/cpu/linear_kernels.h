// The inner loops of `linear`, once per instruction set. linear.cpp drives them.
//
// Every product is summed in one order, whatever the instruction set, the number of tokens or threads, and
// whether the weight is dense or packed: element k of a row goes to fp32 lane k % 16, each lane is a chain of
// fused multiply-adds in ascending k, and the 16 lanes are added pairwise (8 apart, 4, 2, 1). So a token's
// result does not depend on what else is in the batch, and a packed weight gives bit for bit the result of
// the same weight with its zeros. Only the portable kernels may round differently, where the compiler has no
// fused multiply-add.
#pragma once

#include <cstdint>

#include "kernels/half.h"

namespace spinfer::cpu {

inline constexpr int kLanes = 16;      ///< partial sums of one row; also the width of a panel's block
inline constexpr int kStripRows = 16;  ///< rows decoded together: one row of TCTiles
/// Halves that decode_strip may read past the values it needs.
inline constexpr int kValueSlack = 32;

// How far ahead of their use weights are prefetched. An out-of-order window holds one strip at most; where
// the hardware does not prefetch enough, reading and decoding then take turns. One core of a Granite Rapids
// at 50 %: 7.0 GB/s without, 13.0 with 512 or 1024 halves ahead, 14.3 with 2048 (a plain loop reads 15.7
// there), no more with 4096.
inline constexpr int64_t kPrefetchValues = 2048;  ///< halves
inline constexpr int64_t kPrefetchDense = 512;    ///< halves of a row
inline constexpr int64_t kPrefetchBitmaps = 128;  ///< two GroupTiles

/// acc[t][r][lane] += w[r][k]·x[t][k], k % 16 = lane. Element k of row r is w[r·row_stride +
/// (k/16)·block_stride + k%16].
struct AccumulateArgs {
  const Half* w;
  int64_t row_stride;
  int64_t block_stride;
  int rows;
  int64_t blocks;  ///< of 16 columns
  const float* x;  ///< token t at x + t·x_stride
  int64_t x_stride;
  int tokens;
  float* acc;  ///< token t at acc + t·acc_stride, then [rows][16]
  int64_t acc_stride;
};

struct LinearKernels {
  const char* name;
  void (&widen)(const Half* x, int64_t count, float* out);
  /// Expands 16 rows × 64 columns of one GroupTile (16 bitmaps) to panels[4][16 rows][16 columns]; returns
  /// how many values they had. Reads up to kValueSlack halves past those.
  int64_t (&decode_strip)(const uint64_t* bitmaps, const Half* values, Half* panels);
  /// One token × one strip of one GroupTile without panels: acc += W·x, x[64]. acc holds 16·16 floats in an
  /// order of its own, for sum_strip. Prefetches. Returns how many values the strip had; reads up to
  /// kValueSlack halves past those.
  int64_t (&accumulate_strip)(const uint64_t* bitmaps, const Half* values, const float* x, float* acc);
  /// Up to so many tokens are multiplied so, each anew.
  int fused_tokens;
  void (&accumulate)(const AccumulateArgs& args);
  /// sums[r] = Σ acc[r][lane], pairwise.
  void (&sum_lanes)(const float* acc, int rows, float* sums);
  /// The 16 sums of what accumulate_strip left in acc.
  void (&sum_strip)(const float* acc, float* sums);
};

enum class SimdLevel { portable, avx2, avx512 };  ///< avx512 means F, BW, DQ, VL and VBMI2

/// What this CPU and operating system support.
SimdLevel best_simd_level();
/// The kernels of `level`, which must not exceed best_simd_level().
const LinearKernels& linear_kernels(SimdLevel level);

extern const LinearKernels kPortableKernels;
#ifdef SPINFER_X86
extern const LinearKernels kAvx2Kernels;
extern const LinearKernels kAvx512Kernels;
#endif

}  // namespace spinfer::cpu
