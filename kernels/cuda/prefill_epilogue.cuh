// How a warp of the Hopper prefill kernel (spmm_prefill.cu) writes its 16 × n_tile accumulators to y.
#pragma once

#include "kernels/cuda/prefill_problem.cuh"

namespace spinfer::cuda::prefill {

/// Turns an 8×8 matrix of halves held by a warp: lane l gives row l / 4, columns 2·(l % 4) and the next, and
/// gets column l / 4, rows 2·(l % 4) and the next.
__device__ inline __half2 transpose(__half2 value) {
  uint32_t bits;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;"
      : "=r"(bits)
      : "r"(*reinterpret_cast<const uint32_t*>(&value)));
  return *reinterpret_cast<const __half2*>(&bits);
}

/// GELU and SiLU are rare: small rather than fast. Registers have no run-time index; they go round instead.
template <int kValues>
__device__ inline void activate_slowly(float (&acc)[kValues], const float (&bias)[2], Activation act) {
#pragma unroll 1
  for (int i = 0; i < kValues; i += 4) {
    float v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) v[j] = activate(acc[j] + bias[j / 2], act);
#pragma unroll
    for (int j = 0; j + 4 < kValues; ++j) acc[j] = acc[j + 4];
#pragma unroll
    for (int j = 0; j < 4; ++j) acc[kValues - 4 + j] = v[j];
  }
}

/// One element pair's places: rows `row` and row + 1 of one token.
struct RowPair {
  int64_t index;       ///< in y and in the residual
  bool first, second;  ///< inside the matrix
};
__device__ inline __half2 load_pair(const Problem& p, const RowPair& at) {
  __half2 v = __half2half2(__ushort_as_half(0));
  if (p.pairs) {
    if (at.first) v = *reinterpret_cast<const __half2*>(p.epilogue.residual + at.index);
  } else {
    if (at.first) v.x = p.epilogue.residual[at.index];
    if (at.second) v.y = p.epilogue.residual[at.index + 1];
  }
  return v;
}
__device__ inline void store_pair(const Problem& p, const RowPair& at, __half2 v) {
  if (p.pairs) {
    if (at.first) *reinterpret_cast<__half2*>(p.y + at.index) = v;
  } else {
    if (at.first) p.y[at.index] = v.x;
    if (at.second) p.y[at.index + 1] = v.y;
  }
}

/// acc: wgmma's fragment of rows [top, top + 16) and tokens [first_token, first_token + kN). Destroys it.
/// 8×8 blocks are turned in registers so that a token's rows leave as 16 neighbouring bytes.
template <int kN>
__device__ void store_tile(const Problem& p, float (&acc)[kN / 2], int64_t top, int first_token, int lane) {
  const Activation act = p.epilogue.act;
  float lowest = act == Activation::relu ? 0.0f : -INFINITY;
  float bias[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = top + half * 8 + lane / 4;
    if (p.epilogue.bias && row < p.w.shape.m) bias[half] = __half2float(p.epilogue.bias[row]);
  }
  if (act != Activation::none && act != Activation::relu) {
    activate_slowly(acc, bias, act);
    bias[0] = bias[1] = 0;
  }
  const int64_t m = p.w.shape.m;
  int token = first_token + lane / 4;  // of this lane after the turn
  int64_t row = top + lane % 4 * 2;
  RowPair at{token * m + row, false, false};
#pragma unroll
  for (int i = 0; i < kN / 8; ++i) {  // 8 tokens
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const RowPair pair{at.index + half * 8, token < p.n && row + half * 8 < m,
                         token < p.n && row + half * 8 + 1 < m};
      float v[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        v[j] = acc[4 * i + 2 * half + j] + bias[half];
        v[j] = v[j] < lowest ? lowest : v[j];  // unlike fmaxf, keeps NaN
      }
      if (p.epilogue.residual) {
        const float2 residual = __half22float2(transpose(load_pair(p, pair)));
        v[0] += residual.x;
        v[1] += residual.y;
      }
      store_pair(p, pair, transpose(__floats2half2_rn(v[0], v[1])));
    }
    token += 8;
    at.index += 8 * m;
  }
}

}  // namespace spinfer::cuda::prefill
