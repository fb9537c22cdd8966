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
  const int64_t top = int64_t(strip) * kStripRows + tier * kTierRows + lane / 4;
  const int token = eight * 8 + lane % 4 * 2;
  if (p.epilogue.bias) {
    const float high = top < p.shape.m ? __half2float(p.epilogue.bias[top]) : 0.0f;
    const float low = top + 8 < p.shape.m ? __half2float(p.epilogue.bias[top + 8]) : 0.0f;
    sums = {sums.x + high, sums.y + high, sums.z + low, sums.w + low};
  }
  if (p.epilogue.act == Activation::relu) {
    sums = {activate(sums.x, Activation::relu), activate(sums.y, Activation::relu),
            activate(sums.z, Activation::relu), activate(sums.w, Activation::relu)};
  } else if (p.epilogue.act != Activation::none) {
    sums = activate_slowly(sums, p.epilogue.act);
  }
  const float values[4] = {sums.x, sums.y, sums.z, sums.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = top + i / 2 * 8, index = (token + i % 2) * p.shape.m + row;
    if (token + i % 2 >= p.n || row >= p.shape.m) continue;
    if (p.fp32_out) {
      static_cast<float*>(p.y)[index] = values[i];
      continue;
    }
    const float residual = p.epilogue.residual ? __half2float(p.epilogue.residual[index]) : 0.0f;
    static_cast<__half*>(p.y)[index] = __float2half_rn(values[i] + residual);
  }
}

template <int kN>
inline constexpr int kStripItems = kN / 4;  ///< of four sums a lane
template <int kN>
__device__ float4 item_of(const StripSums<kN>& acc, int item) {
  const float* from = acc[item / (kN / 8)] + item % (kN / 8) * 4;
  return {from[0], from[1], from[2], from[3]};
}
template <int kN>
__device__ void store_item(const Problem& p, int strip, int item, int lane, float4 sums) {
  store_sums(p, strip, item / (kN / 8), item % (kN / 8), lane, sums);
}

/// A team's owners are the blocks that have units of it. If there are several their sums meet in
/// Problem::partials. The last owner goes on with another team, so its sums are there early: it leaves them.
/// The others end their runs with the team, at about the same time: each adds up a share of every strip's
/// items over all owners, in their order, so that a result is the same from run to run, and leaves the rest
/// of its own. A word is there when it is no longer kAbsentSum: no tickets, and no fences, which take a
/// microsecond each. Owners wait for each other, which is safe as all blocks of the grid run at
/// once; kernels of other streams of the same GPU may delay that, but must not wait like this one.
template <int kN>
struct TeamSums {
  int team, first, last;
  int slot_of_first;  ///< the team is the first or the second of the block `first`; of the others the first

  __device__ TeamSums(const Problem& p, int team)
      : team(team),
        first(block_of(p, team * p.shape.chunks)),
        last(block_of(p, (team + 1) * p.shape.chunks - 1)),
        slot_of_first(first_unit(p, first) < team * p.shape.chunks) {}
  __device__ bool is_shared() const { return first != last; }
  /// The others wait for this block's sums alone: it has the team's end.
  __device__ bool only_leaves() const { return is_shared() && int(blockIdx.x) == last; }

  __device__ float4* partial(const Problem& p, int block, int warp, int item, int lane) const {
    const int slot = block == first ? slot_of_first : 0;
    return p.partials + (((int64_t(block) * 2 + slot) * kSpmmWarps + warp) * kStripItems<kN> + item) * 32 +
           lane;
  }
  /// The last owner's sums.
  __device__ void leave(const Problem& p, int warp, int lane, const StripSums<kN>& acc) const {
    float4* mine = partial(p, int(blockIdx.x), warp, 0, lane);
#pragma unroll
    for (int item = 0; item < kStripItems<kN>; ++item)
      ptx::store_relaxed(mine + item * 32, present(item_of<kN>(acc, item)));
  }
  /// Another owner's, or the only one's. `staging` is the shared address of room for all items of the strip,
  /// the lane's part.
  __device__ void finish(const Problem& p, uint32_t staging, int warp, int lane,
                         const StripSums<kN>& acc) const {
    const int sharers = max(1, last - first), share = int(blockIdx.x) - first;
#pragma unroll
    for (int item = 0; item < kStripItems<kN>; ++item)
      ptx::store_shared_v4(staging + item * 512, present(item_of<kN>(acc, item)));
    float4* mine = partial(p, int(blockIdx.x), warp, 0, lane);
#pragma unroll 1
    for (int item = 0, turn = 0; item < kStripItems<kN>; ++item) {
      if (turn != share) ptx::store_relaxed(mine + item * 32, ptx::load_shared_v4(staging + item * 512));
      if (++turn == sharers) turn = 0;
    }
    add_up(p, staging, warp, share, sharers, lane);
#pragma unroll 1
    for (int item = share; item < kStripItems<kN>; item += sharers)
      store_item<kN>(p, team * kSpmmWarps + warp, item, lane, ptx::load_shared_v4(staging + item * 512));
  }

 private:
  /// What arithmetic makes is never kAbsentSum, but it shall not depend on that.
  __device__ static float4 present(float4 v) {
    const auto word = [](float x) {
      return __float_as_uint(x) == kAbsentSum ? __uint_as_float(0x7fffffffu) : x;
    };
    return {word(v.x), word(v.y), word(v.z), word(v.w)};
  }
  __device__ static bool is_absent(float4 v) {
    return __float_as_uint(v.x) == kAbsentSum || __float_as_uint(v.y) == kAbsentSum ||
           __float_as_uint(v.z) == kAbsentSum || __float_as_uint(v.w) == kAbsentSum;
  }
  /// Adds what the other owners have of the items share, share + sharers, … to those in `staging`.
  __device__ void add_up(const Problem& p, uint32_t staging, int warp, int share, int sharers,
                         int lane) const {
    constexpr int kAtATime = 8;  // a round takes most of a microsecond
    float4 sum{};
    int item = share, block = first;
#pragma unroll 1
    while (item < kStripItems<kN>) {
      float4 v[kAtATime];
      bool absent;
      do {
        absent = false;
        int next_item = item, next_block = block;
#pragma unroll
        for (int j = 0; j < kAtATime; ++j) {
          const bool own = next_block == int(blockIdx.x);
          if (next_item < kStripItems<kN>)
            v[j] = own ? ptx::load_shared_v4(staging + next_item * 512)
                       : ptx::load_relaxed(partial(p, next_block, warp, next_item, lane));
          if (++next_block > last) {
            next_block = first;
            next_item += sharers;
          }
        }
        next_item = item, next_block = block;
#pragma unroll
        for (int j = 0; j < kAtATime; ++j) {
          if (next_item < kStripItems<kN>) absent |= is_absent(v[j]);
          if (++next_block > last) {
            next_block = first;
            next_item += sharers;
          }
        }
      } while (__any_sync(~0u, absent));
#pragma unroll
      for (int j = 0; j < kAtATime; ++j) {
        if (item >= kStripItems<kN>) break;
        const float gone = __uint_as_float(kAbsentSum);
        if (block != int(blockIdx.x))
          *partial(p, block, warp, item, lane) = {gone, gone, gone, gone};  // for the next launch
        sum = {sum.x + v[j].x, sum.y + v[j].y, sum.z + v[j].z, sum.w + v[j].w};
        if (++block > last) {
          ptx::store_shared_v4(staging + item * 512, sum);
          sum = {};
          block = first;
          item += sharers;
        }
      }
    }
  }
};

}  // namespace spinfer::cuda::spmm
