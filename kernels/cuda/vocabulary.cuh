// Passes over one row of logits, shared by sample and logprobs.
//
// On sm_90 a row belongs to a cluster of 8 blocks, of 4 where rows are many, a contiguous part of it to each;
// a block copies its part to shared memory when it first reads it, and later passes stay there. Elsewhere a
// row belongs to one block, which reads global memory again. What blocks tell each other goes through the
// cluster's shared memory in the order of their ranks, so results do not depend on timing.
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ptx.cuh"

namespace spinfer::cuda {

inline constexpr int kRowThreads = 512;
inline constexpr int kRowWarps = kRowThreads / 32;

/// At most what a kernel of rows has of shared memory beside its part.
inline constexpr size_t kRowShared = size_t{40} << 10;

/// How rows of a vocabulary are launched: grid (blocks of a row, rows). More rows than fill the GPU with 8
/// blocks each get 4 while parts are short: two blocks on an SM wait for each other's barriers, which for
/// 128,256 logits still is faster than parts of twice the length, for 50,272 no more.
inline LaunchShape row_launch(const GpuFacts& facts, int rows, int vocab) {
  LaunchShape shape{dim3(1, unsigned(rows)), dim3(kRowThreads)};
  if (facts.compute_capability < 90) return shape;
  const auto part_bytes = [&](int blocks) {
    return size_t((vocab + blocks - 1) / blocks + 3) / 4 * 4 * sizeof(float);
  };
  constexpr size_t kShortPart = size_t{64} << 10;
  const auto fits = [&](int blocks) {
    return part_bytes(blocks) + kRowShared <= size_t(facts.shared_per_block);
  };
  if (!fits(8)) return shape;
  shape.cluster = 8 * rows > facts.sm_count && part_bytes(4) <= kShortPart && fits(4) ? 4 : 8;
  shape.grid.x = unsigned(shape.cluster);
  shape.shared_bytes = part_bytes(shape.cluster);
  return shape;
}

/// This block's part of a row: values[i] is the logit of token first + i.
struct RowPart {
  const float* values;
  int first;
  int count;

  /// f(id, logit) for this thread's tokens.
  template <class F>
  __device__ void for_each(const F& f) const {
#pragma unroll 4
    for (int i = int(threadIdx.x); i < count; i += kRowThreads) f(first + i, values[i]);
  }
};

/// A logit's rank as an integer: larger logits, larger keys; −0 and 0 are equal. NaN has no place.
__device__ inline uint32_t key_of(float logit) {
  const uint32_t bits = __float_as_uint(logit + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// A token's rank as one integer: larger logits first, lower ids first among equals; every token's differs.
/// NaN is above all.
__device__ inline uint64_t rank_of(float logit, int id) {
  return logit != logit ? ~uint64_t{0} : uint64_t{key_of(logit)} << 32 | ~uint32_t(id);
}
__device__ inline int id_of_rank(uint64_t rank) {
  return int(~uint32_t(rank));
}
__device__ inline float logit_of_rank(uint64_t rank) {
  const uint32_t key = uint32_t(rank >> 32);
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}
/// Whether a row whose best token has this rank can be sampled: no NaN, a finite maximum.
__device__ inline bool usable(uint64_t best) {
  return best != ~uint64_t{0} && isfinite(logit_of_rank(best));
}

struct Largest {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};
struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

/// The block's total by `combine`, which must be associative and commutative in effect; the same on every
/// thread. Three barriers: before totals are written (an earlier call may be read still), before and after
/// they are combined.
template <class T, class Combine>
__device__ inline T block_reduce(T x, const Combine& combine) {
  __shared__ T totals[kRowWarps];
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  for (int offset = 16; offset > 0; offset /= 2) x = combine(x, __shfl_xor_sync(~0u, x, offset));
  __syncthreads();
  if (lane == 0) totals[warp] = x;
  __syncthreads();
  T total = totals[lane % kRowWarps];
  for (int offset = kRowWarps / 2; offset > 0; offset /= 2)
    total = combine(total, __shfl_xor_sync(~0u, total, offset));
  return total;
}

/// The blocks of a row.
class RowTeam {
 public:
  /// `exchange` is shared memory [2].
  __device__ explicit RowTeam(uint64_t* exchange) : exchange_(exchange) {}

  __device__ int blocks() const { return int(gridDim.x); }
  __device__ int rank() const { return int(blockIdx.x); }
  __device__ bool leads() const { return rank() == 0 && threadIdx.x == 0; }

  /// All threads of all blocks.
  __device__ void meet() const { ptx::cluster_meet(); }

  /// Every block's value (8 bytes, the same on all its threads), to be read by rank with `of`. Two places
  /// take turns: one is written again only after a meeting at which all have read it.
  template <class T>
  __device__ void share(T x) {
    static_assert(sizeof(T) == 8);
    turn_ ^= 1;
    if (threadIdx.x == 0) *reinterpret_cast<T*>(&exchange_[turn_]) = x;
    meet();
  }
  template <class T>
  __device__ T of(int rank) const {
    return *reinterpret_cast<const T*>(ptx::in_block(&exchange_[turn_], rank));
  }

  /// The row's total, combined by rank; the same on every thread.
  template <class T, class Combine>
  __device__ T reduce(T x, const Combine& combine) {
    x = block_reduce(x, combine);
    if (blocks() == 1) return x;
    share(x);
    T total = of<T>(0);
    for (int rank = 1; rank < blocks(); ++rank) total = combine(total, of<T>(rank));
    return total;
  }

 private:
  uint64_t* exchange_;
  int turn_ = 0;
};

/// This block's part of the row at `logits`, in place.
__device__ inline RowPart part_of(const float* logits, int vocab, const RowTeam& team) {
  const int size = ((vocab + team.blocks() - 1) / team.blocks() + 3) / 4 * 4;
  const int first = min(vocab, team.rank() * size);
  return {logits + first, first, min(size, vocab - first)};
}

/// The best rank of this thread's tokens; copies them to `copy` unless it is null. Thread-contiguous by 16
/// bytes, four loads under way at once.
__device__ inline uint64_t read_part(const RowPart& part, float* copy) {
  constexpr int kAtOnce = 4;
  uint64_t best = 0;
  const auto take = [&](int i, float x) {
    best = Largest()(best, rank_of(x, part.first + i));
    if (copy) copy[i] = x;
  };
  int done = 0;
  if (reinterpret_cast<uintptr_t>(part.values) % 16 == 0) {
    const float4* vectors = reinterpret_cast<const float4*>(part.values);
    const int count = part.count / 4;
    for (int i = int(threadIdx.x); i < count; i += kAtOnce * kRowThreads) {
      float4 x[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        if (i + j * kRowThreads < count) x[j] = vectors[i + j * kRowThreads];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int first = 4 * (i + j * kRowThreads);
        if (first >= part.count / 4 * 4) break;
        take(first, x[j].x);
        take(first + 1, x[j].y);
        take(first + 2, x[j].z);
        take(first + 3, x[j].w);
      }
    }
    done = part.count / 4 * 4;
  }
#pragma unroll 4
  for (int i = done + int(threadIdx.x); i < part.count; i += kRowThreads) take(i, part.values[i]);
  return best;
}

}  // namespace spinfer::cuda
