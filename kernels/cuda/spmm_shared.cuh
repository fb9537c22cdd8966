// What the warps of the Hopper SpMM (spmm_stream.cu) share: the problem, the shared-memory map, who does
// which units.
#pragma once

#include <cuda.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/nibble_decoder.cuh"
#include "kernels/cuda/spmm.h"
#include "kernels/cuda/spmm_plan.h"
#include "kernels/cuda/spmm_split.h"
#include "kernels/format/strip_stream.h"

namespace spinfer::cuda::spmm {

/// Where a partial sum is still to come: a NaN that no arithmetic makes.
inline constexpr uint32_t kAbsentSum = 0xffffffffu;

/// DeferredNorm (kernels/ops.h) as the kernel sees it; without moments: none.
struct NormOfX {
  const unsigned long long* moments;  ///< [2][kMomentParts][n]
  float per_moment;                   ///< mean = moment · per_moment
  float eps;
  float bound;
  const float* gain_product;  ///< [m], for layer norms only, as bias_product
  const float* bias_product;
};
struct NormOfY {
  unsigned long long* moments;
  bool layer;
  float per_bound;     ///< x = h · gain · per_bound
  const __half* gain;  ///< [m]
  __half* x;           ///< [n][m]
};

/// Everything a launch needs, by value.
struct Problem {
  StripShape shape;
  const uint8_t* records;
  const StripPlace* places;
  const uint8_t* values;
  const RunStart* runs;
  int strips;
  int blocks;            // per strip; a chunk has blocks / chunks of them or one more
  int fewest_blocks;     // blocks / chunks
  int extra_blocks;      // blocks % chunks
  int64_t record_bytes;  // of a strip
  SpmmSplit split;
  int x_blocks;  // of X in a stage; a chunk's stages are about even
  int n;
  bool x_by_copy;   // X by asynchronous copies; otherwise element by element
  const __half* x;  // [n][k]
  Epilogue epilogue;
  bool slow_activation;  // what is more than a comparison with `lowest`
  float lowest;          // 0 for ReLU, else -infinity
  void* y;               // [n][m], if gated [n][m / 2]
  bool fp32_out;
  bool gated;  // y is act(tier 0) · tier 1
  NormOfX norm_of_x;
  NormOfY norm_of_y;
  bool for_racecheck;  // see piece_ring.cuh
  float4* partials;    // [grid][2][kSpmmWarps][n_tile / 4][32], between launches kAbsentSum in every word
};

/// Room for X in a stage, in blocks of 64 columns: each stage costs a warp some 40 instructions, so few
/// tokens have whole chunks in one. Three stages let the fastest warp be a stage ahead of the slowest.
constexpr int x_room(int n_tile) {
  return n_tile <= 16 ? kMaxChunkBlocks : n_tile > 64 ? 1 : 128 / n_tile;
}
template <int kN>
inline constexpr int kXBlocks = x_room(kN);
inline constexpr int kXStages = 3;

/// What multiplies a stage of X, and how it lies there. For few tokens mma.sync, so that warps need not meet:
/// a row a token, whose pitch keeps ldmatrix free of bank conflicts, brought 16 bytes a lane. Otherwise
/// wgmma: blocks of 64 columns, [token][64 columns], 128-byte swizzle, by tensor copies.
constexpr bool uses_wgmma(int n_tile) {
  return n_tile >= 32;
}
template <int kN>
inline constexpr bool kUseWgmma = uses_wgmma(kN);
inline constexpr int kXPitch = kMaxChunkBlocks * kBlockColumns * 2 + 16;
template <int kN>
inline constexpr int kXStageBytes = kUseWgmma<kN> ? kXBlocks<kN>* kN * 128 : kN* kXPitch;

/// One more warp brings X, one prepares the ends of teams. Where the others need more registers than that
/// many warps can have each, they take a warpgroup of their own, which gives its registers away.
template <int kN>
inline constexpr bool kSpareRegisters = kN >= 32;
inline constexpr int kSpareWarpRegisters = 40;
inline constexpr int kMultiplyRegisters = 232;
/// Whether a third warp brings what the multiplying warps read of the weights, but for the first piece and
/// record of each. For few tokens it would be too late where bytes are the limit: a piece waits for the warp
/// to come round (spmm_stream.cu, what was tried).
template <int kN>
inline constexpr bool kFeedingWarp = kN >= 64;
template <int kN>
inline constexpr int kThreads = (kSpmmWarps + (kSpareRegisters<kN> ? 4 : 2)) * 32;

/// One multiplying warp's shared memory. The ring's last row repeats its first, for windows that begin in the
/// one before.
struct alignas(128) WarpMap {
  uint8_t ring[kRingRows + 1][kTrackRowBytes];
  uint8_t record[2][chunk_record_bytes(kMaxChunkBlocks)];
  uint64_t piece_full[kRingPieces];
  uint64_t record_full[2];
  uint64_t piece_empty[kRingPieces];  // these only if kFeedingWarp
  uint64_t record_empty[2];
};
/// A warp's barriers in use, from piece_full on.
template <int kN>
inline constexpr int kWarpBarriers = (kFeedingWarp<kN> ? 2 : 1) * (kRingPieces + 2);
static_assert(sizeof(WarpMap) - offsetof(WarpMap, piece_full) >= 8 * 2 * (kRingPieces + 2) &&
                  offsetof(WarpMap, piece_empty) == offsetof(WarpMap, piece_full) + 8 * (kRingPieces + 2),
              "one after the other");

/// TeamShare::entries at most: with all blocks as owners one group of two items each.
inline constexpr int kMostEntries = 2 * kMostSpmmBlocks;

template <int kN>
struct SharedMap {
  alignas(1024) uint8_t x[kXStages][kXStageBytes<kN>];
  WarpMap warp[kSpmmWarps];  // behind the last record lanes read on, by a row of masks
  NibbleTable table;
  TeamShare last_team;
  uint32_t entry_offsets[kMostEntries];  // spmm_sums.cuh
  // If norm_of_x: a token's sums are multiplied by the first; gain_product times the second is taken off.
  alignas(8) float x_scale[2][kStreamMaxTokens];
  uint64_t x_full[kXStages];
  uint64_t x_empty[kXStages];
  uint64_t ends;  // last_team, entry_offsets and x_scale are there
};

/// StripShape's block_begin and record_begin in 32 bits.
__device__ inline int block_begin(const Problem& p, int chunk) {
  return p.fewest_blocks * chunk + int(p.split.by_chunks.divide(uint32_t(p.extra_blocks) * uint32_t(chunk)));
}
__device__ inline int64_t record_begin(const Problem& p, int chunk) {
  return int64_t(chunk) * int64_t(sizeof(ChunkHead)) + int64_t(block_begin(p, chunk)) * kMaskRowBytes;
}

/// Of the last team some strips may not exist. Their warps multiply the last strip once more, for nothing: no
/// row of theirs is stored.
__device__ inline int read_strip(const Problem& p, int strip) {
  return min(strip, p.strips - 1);
}

/// Walks a strip's chunks, round and round. StripShape::chunk_blocks without its divisions.
struct ChunkWalk {
  int chunk;
  int remainder;  // blocks · chunk modulo chunks

  __device__ ChunkWalk(const Problem& p, int first)
      : chunk(first),
        remainder(p.extra_blocks * first -
                  p.shape.chunks * (block_begin(p, first) - p.fewest_blocks * first)) {}
  __device__ int blocks(const Problem& p) const {
    return p.fewest_blocks + (remainder + p.extra_blocks >= p.shape.chunks);
  }
  /// True when it comes round.
  __device__ bool next(const Problem& p) {
    remainder += p.extra_blocks;
    if (remainder >= p.shape.chunks) remainder -= p.shape.chunks;
    if (++chunk < p.shape.chunks) return false;
    chunk = 0;
    return true;
  }
};

/// Queues the kernel for up to kN tokens, as a programmatic dependent launch. `map` describes X where
/// uses_wgmma(kN) and p.x_by_copy. Instances: 8, 16, 32, 64, 96.
template <int kN>
void launch(const Problem& p, int grid, const CUtensorMap& map, cudaStream_t stream);

}  // namespace spinfer::cuda::spmm
