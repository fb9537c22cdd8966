// The register-blocked product, written once over a vector type and compiled by each linear_<level>.cpp with
// the flags of its instruction set. Everything is in an anonymous namespace, and nothing of std is called: a
// function shared between files of different flags could end up with instructions the CPU does not have.
//
// V describes the vectors: V::Reg holds 16 floats; static Reg load(const float*), load(const Half*), fma(a,
// b, c) = a·b + c, void store(float*, Reg), float sum(Reg) (pairwise: 8 apart, 4, 2, 1), float
// widen_one(Half). Reg should be a plain vector type: GCC 12 keeps arrays of a struct around one on the
// stack, with a store after every multiply-add.
#pragma once

#include "kernels/cpu/linear_kernels.h"

namespace spinfer::cpu {
namespace {

/// R rows × T tokens, their sums in registers over all blocks.
template <class V, int R, int T>
inline void accumulate_block(const AccumulateArgs& a, int row, int token) {
  float* acc = a.acc + token * a.acc_stride + row * kLanes;
  const Half* w = a.w + row * a.row_stride;
  const float* x = a.x + token * a.x_stride;
  using Reg = typename V::Reg;
  Reg sums[R][T];
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) sums[r][t] = V::load(acc + t * a.acc_stride + r * kLanes);
  }
  for (int64_t b = 0; b < a.blocks; ++b, w += a.block_stride, x += kLanes) {
    Reg weights[R];
    for (int r = 0; r < R; ++r) {
      weights[r] = V::load(w + r * a.row_stride);
      // One token: the weight comes from memory. 13.3 → 15.1 GB/s on a core, as fast as reading alone.
      if constexpr (T == 1) __builtin_prefetch(w + r * a.row_stride + kPrefetchDense);
    }
    for (int t = 0; t < T; ++t) {
      const Reg tokens = V::load(x + t * a.x_stride);
      for (int r = 0; r < R; ++r) sums[r][t] = V::fma(weights[r], tokens, sums[r][t]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) V::store(acc + t * a.acc_stride + r * kLanes, sums[r][t]);
  }
}

template <class V, int R, int T>
inline void accumulate_rows(const AccumulateArgs& a, int token) {
  int row = 0;
  for (; row + R <= a.rows; row += R) accumulate_block<V, R, T>(a, row, token);
  for (; row < a.rows; ++row) accumulate_block<V, 1, T>(a, row, token);
}

/// R rows × T tokens fill the registers; kRowsOfOne rows where one token is left.
template <class V, int R, int T, int kRowsOfOne>
void accumulate(const AccumulateArgs& a) {
  int token = 0;
  for (; token + T <= a.tokens; token += T) accumulate_rows<V, R, T>(a, token);
  if constexpr (T > 2) {
    for (; token + 2 <= a.tokens; token += 2) accumulate_rows<V, R, 2>(a, token);
  }
  for (; token < a.tokens; ++token) accumulate_rows<V, kRowsOfOne, 1>(a, token);
}

/// accumulate_strip through a panel; its acc is [16 rows][16].
template <class V, int64_t (&decode_strip)(const uint64_t*, const Half*, Half*)>
int64_t accumulate_strip(const uint64_t* bitmaps, const Half* values, const float* x, float* acc) {
  alignas(64) Half panels[4 * kStripRows * kLanes];
  __builtin_prefetch(bitmaps + kPrefetchBitmaps);
  __builtin_prefetch(bitmaps + kPrefetchBitmaps + 8);
  for (int i = 0; i < 16; ++i) __builtin_prefetch(values + kPrefetchValues + 32 * i);  // a strip at 50 %
  const int64_t count = decode_strip(bitmaps, values, panels);
  const AccumulateArgs args = {panels, kLanes, kStripRows * kLanes, kStripRows, 4, x, 0, 1, acc, 0};
  for (int row = 0; row < kStripRows; row += 4) accumulate_block<V, 4, 1>(args, row, 0);
  return count;
}

template <class V>
void widen(const Half* x, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) V::store(out + i, V::load(x + i));
  for (; i < count; ++i) out[i] = V::widen_one(x[i]);
}

template <class V>
void sum_lanes(const float* acc, int rows, float* sums) {
  for (int r = 0; r < rows; ++r) sums[r] = V::sum(V::load(acc + r * kLanes));
}

template <class V>
void sum_strip(const float* acc, float* sums) {
  sum_lanes<V>(acc, kStripRows, sums);
}

}  // namespace
}  // namespace spinfer::cpu
