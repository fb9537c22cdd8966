// What becomes of the sums of the Hopper SpMM (spmm_stream.cu): the epilogue, with gate and norm, and the
// sums of teams that several blocks share.
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

/// Two tokens' factors. In PTX, so that no address is kept through the main loop.
__device__ inline float2 load_scales(uint32_t address) {
  float2 scales;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(scales.x), "=f"(scales.y) : "r"(address));
  return scales;
}

/// A half that is needed later: the load is under way, no instruction waits for it yet.
__device__ inline uint16_t ask(const __half* global) {
  uint16_t bits;
  asm volatile("ld.global.u16 %0, [%1];" : "=h"(bits) : "l"(global) : "memory");
  return bits;
}
__device__ inline float ask(const float* global) {
  float value;
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(value) : "l"(global) : "memory");
  return value;
}
__device__ inline float half_of(uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}

/// What the epilogue reads of a tier's rows top (lane/4) and top + 8. Far away, as residuals are: whoever has
/// sums to wait for asks before.
struct RowOperands {
  float gain_product[2] = {}, bias_product[2] = {};
  uint16_t bias[2] = {}, gain[2] = {};

  __device__ RowOperands(const Problem& p, int top) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = top + 8 * i;
      if (row >= int(p.shape.m)) continue;
      if (p.norm_of_x.gain_product) {
        gain_product[i] = ask(p.norm_of_x.gain_product + row);
        bias_product[i] = ask(p.norm_of_x.bias_product + row);
      } else if (p.epilogue.bias) {
        bias[i] = ask(p.epilogue.bias + row);
      }
      if (p.norm_of_y.moments) gain[i] = ask(p.norm_of_y.gain + row);
    }
  }
};

/// One tier's of both, in registers: no run-time index.
__device__ inline RowOperands select(const RowOperands (&rows)[kStripTiers], int tier) {
  RowOperands r = rows[0];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    r.gain_product[i] = tier ? rows[1].gain_product[i] : r.gain_product[i];
    r.bias_product[i] = tier ? rows[1].bias_product[i] : r.bias_product[i];
    r.bias[i] = tier ? rows[1].bias[i] : r.bias[i];
    r.gain[i] = tier ? rows[1].gain[i] : r.gain[i];
  }
  return r;
}

/// Four sums of a lane: of a tier rows lane/4 (x, y) and 8 below (z, w), tokens 8·eight + 2·(lane%4) (x, z)
/// and the next. With what comes before the activation.
__device__ inline float4 before_activation(const Problem& p, uint32_t x_scale, const RowOperands& rows,
                                           int token, float4 sums) {
  if (p.norm_of_x.moments) {
    const float2 scale = load_scales(x_scale + 4 * token);
    sums = {sums.x * scale.x, sums.y * scale.y, sums.z * scale.x, sums.w * scale.y};
  }
  if (p.norm_of_x.gain_product) {
    const float2 off = load_scales(x_scale + 4 * kStreamMaxTokens + 4 * token);
    return {sums.x - off.x * rows.gain_product[0] + rows.bias_product[0],
            sums.y - off.y * rows.gain_product[0] + rows.bias_product[0],
            sums.z - off.x * rows.gain_product[1] + rows.bias_product[1],
            sums.w - off.y * rows.gain_product[1] + rows.bias_product[1]};
  }
  const float high = half_of(rows.bias[0]), low = half_of(rows.bias[1]);
  return {sums.x + high, sums.y + high, sums.z + low, sums.w + low};
}
__device__ inline float4 after_activation(const Problem& p, float4 sums) {
  if (p.slow_activation) return activate_slowly(sums, p.epilogue.act);
  const auto at_least = [](float x, float lowest) { return x < lowest ? lowest : x; };  // keeps NaN
  return {at_least(sums.x, p.lowest), at_least(sums.y, p.lowest), at_least(sums.z, p.lowest),
          at_least(sums.w, p.lowest)};
}

/// Where four such values of a lane go in a matrix [n][m].
struct FourPlaces {
  int64_t first;
  int m;
  bool there[4];  ///< in the order x, y, z, w

  __device__ FourPlaces(const Problem& p, int m, int top, int token)
      : first(int64_t(token) * m + top),
        m(m),
        there{token < p.n && top < m, token + 1 < p.n && top < m, token < p.n && top + 8 < m,
              token + 1 < p.n && top + 8 < m} {}
  __device__ int64_t index(int i) const { return first + i % 2 * m + i / 2 * 8; }
};

/// The first of a tier's rows that a lane has sums of; none if there is no such strip.
__device__ inline int top_row(const Problem& p, int strip, int tier, int lane) {
  return strip < p.strips ? int(p.shape.tier_row(strip, tier)) + lane / 4 : int(p.shape.m);
}

/// The residuals of four places.
struct Residuals {
  uint16_t bits[4] = {};

  __device__ Residuals() = default;
  __device__ Residuals(const Problem& p, const FourPlaces& at) {
    if (!p.epilogue.residual) return;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (at.there[i]) bits[i] = ask(p.epilogue.residual + at.index(i));
  }
};

/// Over the lanes of the same rows' tokens: lane l % 8 < 4 gets the sum of the first token 2·(l % 4), the
/// others that of the second.
__device__ inline float sum_by_token(float first, float second, int lane) {
  const bool second_half = lane & 4;
  float sum = (second_half ? second : first) + __shfl_xor_sync(~0u, second_half ? first : second, 4);
  sum += __shfl_xor_sync(~0u, sum, 8);
  return sum + __shfl_xor_sync(~0u, sum, 16);
}

/// Stores the values of h and what their norm needs: h · gain, and moments. By whole warps.
__device__ inline void store_normed(const Problem& p, const RowOperands& rows, const FourPlaces& at,
                                    int strip, int eight, int lane, const float (&h)[4]) {
  const NormOfY& norm = p.norm_of_y;
  float squares[2] = {}, totals[2] = {};
  const float gains[2] = {half_of(rows.gain[0]) * norm.per_bound, half_of(rows.gain[1]) * norm.per_bound};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (!at.there[i]) continue;
    const __half rounded = __float2half_rn(h[i]);
    const float x = __half2float(rounded);
    static_cast<__half*>(p.y)[at.index(i)] = rounded;
    norm.x[at.index(i)] = __float2half_rn(x * gains[i / 2]);
    squares[i % 2] += x * x;
    totals[i % 2] += x;
  }
  float moment = sum_by_token(squares[0], squares[1], lane);
  if (norm.layer) {
    const float total = sum_by_token(totals[0], totals[1], lane);
    if (lane >= 8) moment = total;
  }
  // Lanes 0 to 7 add a token's square each, for a layer norm the next eight its sum.
  const int token = eight * 8 + lane % 4 * 2 + lane / 4 % 2;
  if (lane < (norm.layer ? 16 : 8) && token < p.n)
    atomicAdd(norm.moments + (lane / 8 * kMomentParts + strip % kMomentParts) * p.n + token,
              static_cast<unsigned long long>(__float2ll_rn(moment * float(1 << kMomentFractionBits))));
}

/// Four sums of each lane (before_activation), and where they go.
struct FourSums {
  int strip, tier, eight, lane;

  __device__ int token() const { return eight * 8 + lane % 4 * 2; }
  __device__ FourPlaces places(const Problem& p) const {
    return {p, int(p.shape.m), top_row(p, strip, tier, lane), token()};
  }
};

/// A tier's sums to y, with the epilogue.
__device__ inline void store_sums(const Problem& p, uint32_t x_scale, const RowOperands& rows,
                                  const Residuals& residuals, const FourSums& of, float4 sums) {
  const FourPlaces at = of.places(p);
  sums = after_activation(p, before_activation(p, x_scale, rows, of.token(), sums));
  float values[4] = {sums.x, sums.y, sums.z, sums.w};
  if (p.fp32_out) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (at.there[i]) static_cast<float*>(p.y)[at.index(i)] = values[i];
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) values[i] += half_of(residuals.bits[i]);
  if (p.norm_of_y.moments) return store_normed(p, rows, at, of.strip, of.eight, of.lane, values);
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (at.there[i]) static_cast<__half*>(p.y)[at.index(i)] = __float2half_rn(values[i]);
}

/// The sums of a pair of tiers: y [n][m / 2] = act(gate) · up.
__device__ inline void store_gated(const Problem& p, uint32_t x_scale, const RowOperands (&rows)[kStripTiers],
                                   int strip, int eight, int lane, float4 gate, float4 up) {
  const int token = eight * 8 + lane % 4 * 2;
  const FourPlaces at(p, int(p.shape.m / 2), top_row(p, strip, 0, lane), token);
  gate = after_activation(p, before_activation(p, x_scale, rows[0], token, gate));
  up = before_activation(p, x_scale, rows[1], token, up);
  const float values[4] = {gate.x * up.x, gate.y * up.y, gate.z * up.z, gate.w * up.w};
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (at.there[i]) static_cast<__half*>(p.y)[at.index(i)] = __float2half_rn(values[i]);
}

/// Of four sums a lane: both tiers' of the first eight tokens, of the next, ….
template <int kN>
inline constexpr int kStripItems = kN / 4;
template <int kN>
inline constexpr int kStripSumBytes = kStripItems<kN> * 32 * int(sizeof(float4));
static_assert(2 * kSpmmWarps * kStripSumBytes<kStreamMaxTokens> == kPartialBytesPerBlock);
static_assert(kStripSumBytes<kStreamMaxTokens> <= int(sizeof(WarpMap::ring)), "end_run's staging");
template <int kN>
__device__ float4 item_of(const StripSums<kN>& acc, int item) {
  const float* from = acc[item % kStripTiers] + item / kStripTiers * 4;
  return {from[0], from[1], from[2], from[3]};
}

// Sums of teams that several blocks share (spmm_split.h) meet in Problem::partials and are added up in the
// owners' order, so that a result is the same from run to run. A word is there when it is no longer
// kAbsentSum: no tickets, and no fences, which take a microsecond each. Owners wait for each other, which is
// safe as all blocks of the grid run at once; kernels of other streams of the same GPU may delay that, but
// must not wait like this one.
//
// All of it is code that a launch runs once, a warp or two a scheduler, at 4 to 6 clocks an instruction: what
// counts is how many there are, and a warp of its own does beforehand what it can (prepare_ends).

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

/// The sums of a team that ends inside the block's run. Destroys them. Only where teams are more than blocks
/// is one not shared: that is small rather than fast. Registers have no run-time index; they go round.
template <int kN>
__device__ void end_team(const Problem& p, uint32_t x_scale, int team, bool is_shared, int warp, int lane,
                         StripSums<kN>& acc) {
  if (is_shared) return leave<kN>(partials_of<kN>(p, 2 * int(blockIdx.x), warp) + lane, acc);
  const int strip = team * kSpmmWarps + warp;
  const RowOperands rows[kStripTiers] = {{p, top_row(p, strip, 0, lane)}, {p, top_row(p, strip, 1, lane)}};
#pragma unroll 1
  for (int eight = 0; eight < kN / 8; ++eight) {
    if (p.gated) {
      store_gated(p, x_scale, rows, strip, eight, lane, item_of<kN>(acc, 0), item_of<kN>(acc, 1));
    } else {
#pragma unroll 1
      for (int tier = 0; tier < kStripTiers; ++tier) {
        const FourSums of{strip, tier, eight, lane};
        store_sums(p, x_scale, select(rows, tier), {p, of.places(p)}, of,
                   tier ? item_of<kN>(acc, 1) : item_of<kN>(acc, 0));
      }
    }
#pragma unroll
    for (int i = 0; i + 4 < kN / 2; ++i) {
      acc[0][i] = acc[0][i + 4];
      acc[1][i] = acc[1][i + 4];
    }
  }
}

/// Where a partial sum of TeamShare lies, in bytes from the first block's of the same warp.
template <int kN>
__device__ uint32_t entry_offset(const TeamShare& t, int entry) {
  const int turn = t.turn(entry), owner = entry - turn * t.owners;
  return uint32_t(t.place(owner) * kSpmmWarps * kStripItems<kN> + t.item(turn)) * (32 * sizeof(float4));
}

/// Adds up all owners' sums of the items `t` says, into `staging`, in turn. `offsets`: shared address of
/// their entry_offsets, some more words may be read behind.
template <int kN>
__device__ void add_up(const Problem& p, const TeamShare& t, uint32_t offsets, float4* staging, int warp,
                       int lane) {
  // A round takes most of a microsecond: all that few tokens need, and most teams' of more.
  constexpr int kAtATime = kN <= 32 ? 12 : 18;
  char* const partials = reinterpret_cast<char*>(partials_of<kN>(p, 0, warp) + lane);
  float4 sum{};
  int owners = t.owners;  // of the item, still to come
#pragma unroll 1
  for (int left = t.entries; left > 0; left -= kAtATime, offsets += 4 * kAtATime) {
    float4* from[kAtATime];
    float4 v[kAtATime];
#pragma unroll
    for (int j = 0; j < kAtATime; ++j) {
      from[j] = reinterpret_cast<float4*>(partials + load_shared(offsets + 4 * j));
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
      ptx::store_relaxed(from[j], {gone, gone, gone, gone});  // for the next launch
      sum = {sum.x + v[j].x, sum.y + v[j].y, sum.z + v[j].z, sum.w + v[j].w};
      if (--owners == 0) {
        *staging = sum;
        staging += 32;
        sum = {};
        owners = t.owners;
      }
    }
  }
}

/// The sums of the run's last team. `staging` is shared memory for all items of the strip, the lane's part.
template <int kN>
__device__ void end_run(const Problem& p, uint32_t x_scale, const TeamShare& t, uint32_t offsets, int team,
                        float4* staging, int warp, int lane, const StripSums<kN>& acc) {
  leave<kN>(t.owners == 1 ? staging : partials_of<kN>(p, t.own_place, warp) + lane, acc);
  if (t.turns == 0) return;
  // What comes from far is asked for before the sums are waited for: the residuals of the next kAhead turns
  // (a gated problem has none).
  constexpr int kAhead = 2;
  const int strip = team * kSpmmWarps + warp;
  const RowOperands rows[kStripTiers] = {{p, top_row(p, strip, 0, lane)}, {p, top_row(p, strip, 1, lane)}};
  const auto sums_of = [&](int turn) {
    const int item = t.item(turn);
    return FourSums{strip, item % kStripTiers, item / kStripTiers, lane};
  };
  const auto residuals_of = [&](int turn) {
    return turn < t.turns ? Residuals(p, sums_of(turn).places(p)) : Residuals();
  };
  Residuals ahead[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) ahead[i] = residuals_of(i);
  if (t.owners > 1) add_up<kN>(p, t, offsets, staging, warp, lane);
  if (p.gated) {
#pragma unroll 1
    for (int turn = 0; turn < t.turns; turn += kStripTiers, staging += 2 * 32)
      store_gated(p, x_scale, rows, strip, t.item(turn) / kStripTiers, lane, staging[0], staging[32]);
    return;
  }
#pragma unroll 1
  for (int turn = 0; turn < t.turns; ++turn, staging += 32) {
    const FourSums of = sums_of(turn);
    const Residuals residuals = ahead[0];
#pragma unroll
    for (int i = 0; i + 1 < kAhead; ++i) ahead[i] = ahead[i + 1];
    ahead[kAhead - 1] = residuals_of(turn + kAhead);
    store_sums(p, x_scale, select(rows, of.tier), residuals, of, staging[0]);
  }
}

}  // namespace spinfer::cuda::spmm
