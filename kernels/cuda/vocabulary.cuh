// Passes of one thread block over one row of logits, shared by sample and logprobs.
#pragma once

#include <cstdint>

#include "kernels/cuda/fault.h"

namespace spinfer::cuda {

inline constexpr int kRowThreads = 1024;
inline constexpr int kRowWarps = kRowThreads / 32;

/// f(index, row[index]) for this thread's elements of [begin, end), four loads under way at once.
/// Warp-contiguous.
template <class F>
__device__ inline void for_each(const float* row, int begin, int end, const F& f) {
  int i = begin + int(threadIdx.x);
  for (; i + 3 * kRowThreads < end; i += 4 * kRowThreads) {
    const float a = row[i], b = row[i + kRowThreads], c = row[i + 2 * kRowThreads],
                d = row[i + 3 * kRowThreads];
    f(i, a);
    f(i + kRowThreads, b);
    f(i + 2 * kRowThreads, c);
    f(i + 3 * kRowThreads, d);
  }
  for (; i < end; i += kRowThreads) f(i, row[i]);
}

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
  T total = totals[lane];
  for (int offset = 16; offset > 0; offset /= 2) total = combine(total, __shfl_xor_sync(~0u, total, offset));
  return total;
}

/// A logit's rank as an integer: larger logits, larger keys; −0 and 0 are equal. NaN has no place.
__device__ inline uint32_t key_of(float logit) {
  const uint32_t bits = __float_as_uint(logit + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// A token's rank as one integer: larger logits first, lower ids first among equals; every token's differs.
__device__ inline uint64_t rank_of(float logit, int id) {
  return uint64_t{key_of(logit)} << 32 | ~uint32_t(id);
}
__device__ inline int id_of_rank(uint64_t rank) {
  return int(~uint32_t(rank));
}

/// The rank of the most probable token, or 0 after a fault where a logit is NaN or the maximum not finite.
__device__ inline uint64_t best_or_fault(const float* row, int vocab, Fault* fault) {
  uint64_t best = 0;
  int bad = 0;
  for_each(row, 0, vocab, [&](int i, float x) {
    bad |= x != x;
    const uint64_t rank = rank_of(x, i);
    best = rank > best ? rank : best;
  });
  bad = block_reduce(bad, [](int a, int b) { return a | b; });
  best = block_reduce(best, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
  if (!bad && isfinite(row[id_of_rank(best)])) return best;
  if (threadIdx.x == 0)
    raise_fault(fault, bad ? FaultKind::nan_logits : FaultKind::bad_maximum, int(blockIdx.x));
  return 0;
}

}  // namespace spinfer::cuda
