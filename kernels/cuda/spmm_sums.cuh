// What becomes of the sums of the Hopper SpMM (spmm_stream.cu): the epilogue, and the sums of teams that
// several blocks share.
#pragma once

#include "kernels/cuda/ptx_hopper.cuh"
#include "kernels/cuda/spmm_shared.cuh"

namespace spinfer::cuda::spmm {

/// A strip's sums: each tier's in its C fragment.
template <int kN>
using StripSums = float[kStripTiers][kN / 2];

/// The activations that are more than a comparison. Out of the way: inlined for every sum they would be most
/// of the kernel's code.
static __device__ __noinline__ float4 activate_slowly(float4 y, Activation act) {
  return {activate(y.x, act), activate(y.y, act), activate(y.z, act), activate(y.w, act)};
}

/// Four sums of a lane: in `strip` rows 16·tier + lane/4 (x, y) and 8 below (z, w), tokens
/// 8·eight + 2·(lane%4) (x, z) and the next. To y, with the epilogue.
__device__ inline void store_sums(const Problem& p, int strip, int tier, int eight, int lane, float4 sums) {
  const int m = int(p.shape.m), top = strip * kStripRows + tier * kTierRows + lane / 4;
  const int token = eight * 8 + lane % 4 * 2;
  if (p.epilogue.bias) {
    const float high = top < m ? __half2float(p.epilogue.bias[top]) : 0.0f;
    const float low = top + 8 < m ? __half2float(p.epilogue.bias[top + 8]) : 0.0f;
    sums = {sums.x + high, sums.y + high, sums.z + low, sums.w + low};
  }
  if (p.epilogue.act == Activation::relu) {
    sums = {activate(sums.x, Activation::relu), activate(sums.y, Activation::relu),
            activate(sums.z, Activation::relu), activate(sums.w, Activation::relu)};
  } else if (p.epilogue.act != Activation::none) {
    sums = activate_slowly(sums, p.epilogue.act);
  }
  const float values[4] = {sums.x, sums.y, sums.z, sums.w};
  const int64_t first = int64_t(token) * m + top;
  const bool there[4] = {token < p.n && top < m, token + 1 < p.n && top < m, token < p.n && top + 8 < m,
                         token + 1 < p.n && top + 8 < m};
  if (p.fp32_out) {
    float* y = static_cast<float*>(p.y) + first;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (there[i]) y[i % 2 * m + i / 2 * 8] = values[i];
    return;
  }
  float residuals[4] = {};
  if (const __half* residual = reinterpret_cast<const __half*>(p.epilogue.residual)) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (there[i]) residuals[i] = __half2float(residual[first + i % 2 * m + i / 2 * 8]);
  }
  __half* y = static_cast<__half*>(p.y) + first;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (there[i]) y[i % 2 * m + i / 2 * 8] = __float2half_rn(values[i] + residuals[i]);
}

template <int kN>
inline constexpr int kStripItems = kN / 4;  ///< of four sums a lane
template <int kN>
inline constexpr int kStripSumBytes = kStripItems<kN> * 32 * int(sizeof(float4));
static_assert(2 * kSpmmWarps * kStripSumBytes<kStreamMaxTokens> == kPartialBytesPerBlock);
static_assert(kStripSumBytes<kStreamMaxTokens> <= int(sizeof(WarpMap::ring)), "end_run's staging");
template <int kN>
__device__ float4 item_of(const StripSums<kN>& acc, int item) {
  const float* from = acc[item / (kN / 8)] + item % (kN / 8) * 4;
  return {from[0], from[1], from[2], from[3]};
}
template <int kN>
__device__ void store_item(const Problem& p, int strip, int item, int lane, float4 sums) {
  store_sums(p, strip, item / (kN / 8), item % (kN / 8), lane, sums);
}

// Sums of teams that several blocks share (spmm_split.h) meet in Problem::partials and are added up in the
// owners' order, so that a result is the same from run to run. A word is there when it is no longer
// kAbsentSum: no tickets, and no fences, which take a microsecond each. Owners wait for each other, which is
// safe as all blocks of the grid run at once; kernels of other streams of the same GPU may delay that, but
// must not wait like this one.
//
// All of it is code that a launch runs once, a warp or two a scheduler, at 4 to 6 clocks an instruction: what
// counts is how many there are, and X's warp does beforehand what it can (TeamShare).

/// What arithmetic makes is never kAbsentSum, but it shall not depend on that. (In floats: as integers they
/// would move between registers around each wgmma.)
__device__ inline float4 present(float4 v) {
  const auto word = [](float x) {
    return __float_as_uint(x) == kAbsentSum ? __uint_as_float(0x7fffffffu) : x;
  };
  return {word(v.x), word(v.y), word(v.z), word(v.w)};
}
__device__ inline bool is_absent(float4 v) {
  return max(max(__float_as_uint(v.x), __float_as_uint(v.y)),
             max(__float_as_uint(v.z), __float_as_uint(v.w))) == kAbsentSum;
}

/// Where the sums of a warp's strip begin in Problem::partials.
template <int kN>
__device__ float4* partials_of(const Problem& p, int place, int warp) {
  return p.partials + int64_t(place * kSpmmWarps + warp) * (kStripItems<kN> * 32);
}
template <int kN>
__device__ void leave(float4* to, const StripSums<kN>& acc) {
#pragma unroll
  for (int item = 0; item < kStripItems<kN>; ++item)
    ptx::store_relaxed(to + item * 32, present(item_of<kN>(acc, item)));
}

/// The sums of a team that ends inside the block's run.
template <int kN>
__device__ void end_team(const Problem& p, int team, bool is_shared, int warp, int lane,
                         const StripSums<kN>& acc) {
  if (is_shared) return leave<kN>(partials_of<kN>(p, 2 * int(blockIdx.x), warp) + lane, acc);
#pragma unroll
  for (int item = 0; item < kStripItems<kN>; ++item)
    store_item<kN>(p, team * kSpmmWarps + warp, item, lane, item_of<kN>(acc, item));
}

/// Adds up all owners' sums of the items `t` says, into `staging`.
template <int kN>
__device__ void add_up(const Problem& p, const TeamShare& t, float4* staging, int warp, int lane) {
  // A round takes most of a microsecond: all that few tokens need, and most teams' of more.
  constexpr int kAtATime = kN <= 16 ? 10 : kN == 32 ? 12 : 18;
  static_assert(kAtATime <= 32, "a lane finds an entry's place");
  char* const partials = reinterpret_cast<char*>(p.partials + lane);
  float4 sum{};
  float4* to = staging + t.item * 32;
#pragma unroll 1
  for (int left = t.entries, first_entry = 0; left > 0; left -= kAtATime, first_entry += kAtATime) {
    const int entry = first_entry + lane, turn = t.turn(entry), owner = entry - turn * t.owners;
    const uint32_t offset =
        uint32_t((t.place(owner) * kSpmmWarps + warp) * kStripItems<kN> + t.item + turn * t.step) *
        (32 * sizeof(float4));
    const uint32_t ends = __ballot_sync(~0u, owner == t.owners - 1);
    float4* from[kAtATime];
    float4 v[kAtATime];
#pragma unroll
    for (int j = 0; j < kAtATime; ++j) {
      from[j] = reinterpret_cast<float4*>(partials + __shfl_sync(~0u, offset, j));
      v[j] = {};
    }
    bool absent;
    do {
      absent = false;
#pragma unroll
      for (int j = 0; j < kAtATime; ++j)
        if (j < left) v[j] = ptx::load_relaxed(from[j]);
#pragma unroll
      for (int j = 0; j < kAtATime; ++j) absent |= is_absent(v[j]);
    } while (__any_sync(~0u, absent));
    const float gone = __uint_as_float(kAbsentSum);
#pragma unroll
    for (int j = 0; j < kAtATime; ++j) {
      if (j >= left) break;
      *from[j] = {gone, gone, gone, gone};  // for the next launch
      sum = {sum.x + v[j].x, sum.y + v[j].y, sum.z + v[j].z, sum.w + v[j].w};
      if (ends >> j & 1) {
        *to = sum;
        to += t.step * 32;
        sum = {};
      }
    }
  }
}

/// The sums of the run's last team. `staging` is shared memory for all items of the strip, the lane's part.
template <int kN>
__device__ void end_run(const Problem& p, const TeamShare& t, int team, float4* staging, int warp, int lane,
                        const StripSums<kN>& acc) {
  leave<kN>(t.owners == 1 ? staging : partials_of<kN>(p, t.own_place, warp) + lane, acc);
  if (t.owners > 1) add_up<kN>(p, t, staging, warp, lane);
#pragma unroll 1
  for (int item = t.item; item < kStripItems<kN>; item += t.step)
    store_item<kN>(p, team * kSpmmWarps + warp, item, lane, staging[item * 32]);
}

}  // namespace spinfer::cuda::spmm
