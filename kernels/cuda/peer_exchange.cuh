// Device side of peer_group.h: what a kernel of one rank sees of the others, and the exchange of tensors so
// small that latency is all.
//
// Lines: 16 bytes, {data, epoch, data, epoch}, which arrive whole in halves of 8 bytes: a reader that finds
// the call's epoch in both halves has the data, with no fence and no flag behind it. Twice the bytes, one
// crossing of the link. Slots reach the same by a fence and a flag a block: once the bytes, for larger
// tensors. Two H200s, 16 x 8192 halves: 3.6 us by lines, 6.2 us by slots
// (scripts/results/h200_tp_all_reduce.json).
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/peer_group.h"

namespace spinfer::cuda {

/// Blocks of a kernel that exchanges, at most.
inline constexpr int kMostPeerBlocks = 256;
/// Vectors of 8 halves of one rank's part, at most, for an exchange by lines.
inline constexpr int64_t kMostLineVecs = PeerGroup::kMostLineBytes / int64_t{sizeof(uint4)};

/// What a kernel of one rank sees of the group.
struct Peers {
  uint4* slots[kMaxPeers];     ///< [2][world][kSlotBytes] of each rank
  uint4* lines[kMaxPeers];     ///< [2][world][2][kMostLineVecs] of each rank
  uint32_t* flags[kMaxPeers];  ///< [world][blocks] of each rank
  uint32_t* epochs;            ///< [kMostPeerBlocks], mine, all the same: the number of the last call
  const volatile int* aborted;
  int rank, world;
};

inline constexpr int kSpinsBetweenLooks = 4096;  // looking at host memory takes a microsecond

/// The number of this call. After wait_for_predecessor().
__device__ inline uint32_t call_number(const Peers& p) {
  return p.epochs[blockIdx.x] + 1;
}
/// By every thread of every block, after a barrier behind call_number(): counts for the blocks too that this
/// grid lacks.
__device__ inline void count_call(const Peers& p, uint32_t epoch) {
  for (unsigned entry = blockIdx.x + threadIdx.x * gridDim.x; entry < kMostPeerBlocks;
       entry += gridDim.x * blockDim.x)
    p.epochs[entry] = epoch;
}

__device__ inline void store_line(uint4* to, uint32_t a, uint32_t b, uint32_t epoch) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(a), "r"(epoch), "r"(b),
               "r"(epoch)
               : "memory");
}
/// Other GPUs write there: past the L1 cache.
__device__ inline uint4 load_part(const uint4* from) {
  uint4 v;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}

__device__ inline int64_t line_of(const Peers& p, int from, int64_t i, uint32_t epoch) {
  return (int64_t(epoch % 2) * p.world + from) * 2 * kMostLineVecs + i;
}

/// Sends vector `i` of my part to all peers, each rank to another one first.
__device__ inline void send_vector(const Peers& p, int64_t i, uint4 v, uint32_t epoch) {
  const int64_t line = line_of(p, p.rank, i, epoch);
  for (int step = 1; step < p.world; ++step) {
    uint4* to = p.lines[(p.rank + step) % p.world] + line;
    store_line(to, v.x, v.y, epoch);
    store_line(to + kMostLineVecs, v.z, v.w, epoch);
  }
}

/// Vector `i` of a peer's part, once it is there. False if the group was aborted.
__device__ inline bool receive_vector(const Peers& p, int from, int64_t i, uint32_t epoch, uint4& v) {
  const uint4* line = p.lines[p.rank] + line_of(p, from, i, epoch);
  for (int spins = 1;; ++spins) {
    const uint4 a = load_part(line), b = load_part(line + kMostLineVecs);
    if (a.y == epoch && a.w == epoch && b.y == epoch && b.w == epoch) {
      v = make_uint4(a.x, a.z, b.x, b.z);
      return true;
    }
    if (spins % kSpinsBetweenLooks == 0 && *p.aborted != 0) return false;
  }
}

__device__ inline void add_pairs(float2 (&sum)[4], uint4 part) {
  const auto& pairs = reinterpret_cast<const __half2(&)[4]>(part);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 v = __half22float2(pairs[j]);
    sum[j].x += v.x;
    sum[j].y += v.y;
  }
}
__device__ inline Vec8 rounded(const float2 (&sum)[4]) {
  Vec8 out;
#pragma unroll
  for (int j = 0; j < 4; ++j) out.pairs[j] = __float22half2_rn(sum[j]);
  return out;
}

/// Vector `i` summed over the ranks in their order, in fp32, rounded once; `mine` was sent. False if the
/// group was aborted.
__device__ inline bool sum_vector(const Peers& p, int64_t i, uint4 mine, uint32_t epoch, Vec8& out) {
  float2 sum[4] = {};
  for (int rank = 0; rank < p.world; ++rank) {
    uint4 part = mine;
    if (rank != p.rank && !receive_vector(p, rank, i, epoch, part)) return false;
    add_pairs(sum, part);
  }
  out = rounded(sum);
  return true;
}

}  // namespace spinfer::cuda
