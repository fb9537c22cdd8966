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

/// Four neighbouring rows of one token, two registers.
struct RowQuad {
  int64_t index;  ///< of the first, in y and in the residual
  int rows;       ///< inside the matrix, at least four where p.quads and the token exists
};
__device__ inline uint2 load_quad(const Problem& p, const RowQuad& at) {
  const __half* from = p.epilogue.residual + at.index;
  uint2 v{};
  if (p.quads) {
    if (at.rows > 0) v = *reinterpret_cast<const uint2*>(from);
  } else {
    uint32_t halves[4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < at.rows) halves[i] = __half_as_ushort(from[i]);
    v = make_uint2(halves[0] | halves[1] << 16, halves[2] | halves[3] << 16);
  }
  return v;
}
__device__ inline void store_quad(const Problem& p, const RowQuad& at, uint2 v) {
  __half* to = p.y + at.index;
  if (p.quads) {
    if (at.rows > 0) *reinterpret_cast<uint2*>(to) = v;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < at.rows) to[i] = __ushort_as_half(uint16_t((i < 2 ? v.x : v.y) >> (16 * (i % 2))));
  }
}

/// What `transpose` gives and takes of both halves of a token's 16 rows: lane l's rows 2·(l % 4) and the next
/// of each. Stored as they are they would be 16 bytes a token, half a sector.
struct Halves {
  __half2 low, high;

  /// Lanes by pairs: the even one takes four rows of the low half, the odd one of the high half.
  __device__ uint2 to_quad(bool odd) const {
    const uint32_t l = bits(low), h = bits(high);
    const uint32_t other = __shfl_xor_sync(~0u, odd ? l : h, 1);
    return odd ? make_uint2(other, h) : make_uint2(l, other);
  }
  __device__ static Halves of_quad(uint2 v, bool odd) {
    const uint32_t other = __shfl_xor_sync(~0u, odd ? v.x : v.y, 1);
    return odd ? Halves{pair(other), pair(v.y)} : Halves{pair(v.x), pair(other)};
  }

 private:
  __device__ static uint32_t bits(__half2 v) { return *reinterpret_cast<const uint32_t*>(&v); }
  __device__ static __half2 pair(uint32_t v) { return *reinterpret_cast<const __half2*>(&v); }
};

/// acc: wgmma's fragment of rows [top, top + 16) and tokens [first_token, first_token + kN). Destroys it.
/// 8×8 blocks are turned in registers so that a token's rows leave as 32 neighbouring bytes.
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
  const bool odd = lane % 2 != 0;
  const int64_t row = top + lane % 4 / 2 * 4 + (odd ? 8 : 0);
  const int rows = int(min(int64_t{4}, m - row));
  int token = first_token + lane / 4;  // of this lane after the turn
  int64_t index = token * m + row;
#pragma unroll
  for (int i = 0; i < kN / 8; ++i) {  // 8 tokens
    const RowQuad at{index, token < p.n ? rows : 0};
    float v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      v[j] = acc[4 * i + j] + bias[j / 2];
      v[j] = v[j] < lowest ? lowest : v[j];  // unlike fmaxf, keeps NaN
    }
    if (p.epilogue.residual) {
      const Halves residual = Halves::of_quad(load_quad(p, at), odd);
      const float2 low = __half22float2(transpose(residual.low));
      const float2 high = __half22float2(transpose(residual.high));
      v[0] += low.x;
      v[1] += low.y;
      v[2] += high.x;
      v[3] += high.y;
    }
    const Halves turned{transpose(__floats2half2_rn(v[0], v[1])), transpose(__floats2half2_rn(v[2], v[3]))};
    store_quad(p, at, turned.to_quad(odd));
    token += 8;
    index += 8 * m;
  }
}

}  // namespace spinfer::cuda::prefill
