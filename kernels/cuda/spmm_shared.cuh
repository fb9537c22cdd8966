// What the warps of the Hopper SpMM (spmm_stream.cu) share: the problem, the shared-memory map, who does
// which units.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/spmm_plan.h"
#include "kernels/cuda/strip_decoder.cuh"
#include "kernels/format/strip_stream.h"

namespace spinfer::cuda::spmm {

/// Everything a launch needs, by value.
struct Problem {
  StripShape shape;
  const uint32_t* offsets;
  const ChunkHeights* heights;
  const uint8_t* data;
  int strips;
  int blocks;         // per strip; a chunk has blocks / chunks of them or one more
  int fewest_blocks;  // blocks / chunks
  int extra_blocks;   // blocks % chunks
  int units;
  int slot_bytes;
  int x_blocks;  // of X in a stage; a chunk's stages are about even
  DecodeFactors factors;
  int n;
  bool x_by_box;    // X through the tensor map; otherwise element by element
  const __half* x;  // [n][k]
  Epilogue epilogue;
  void* y;  // [n][m]
  bool fp32_out;
  float4* partials;   // [grid][2][warps][n_tile / 8][32]
  uint32_t* tickets;  // [strips]
};

/// Room for X in a stage, in blocks of 64 columns, and stages: 32 KiB whatever the tokens. Few tokens have
/// whole chunks in a stage (each stage costs a warp some 40 instructions), many tokens need the slack of more
/// stages.
template <int kN>
inline constexpr int kXBlocks = kN <= 16 ? 8 : 64 / kN;
template <int kN>
inline constexpr int kXStages = 256 / kN / kXBlocks<kN>;

/// Helper warps: kFetchWarps bring the chunks of kWarps / kFetchWarps multiplying warps each, one brings X.
inline constexpr int kFetchWarps = 3;
template <int kWarps>
inline constexpr int kThreads = (kWarps + kFetchWarps + 1) * 32;

/// The shared-memory map; kWarps · kSpmmStages slots of `slot_bytes` follow, then kSlotOverrun.
template <int kN, int kWarps>
struct SharedMap {
  alignas(1024) uint8_t x[kXStages<kN>][kXBlocks<kN>][kN * 128];  // [token][64 columns], 128-byte swizzle
  uint64_t x_full[kXStages<kN>];
  uint64_t x_empty[kXStages<kN>];
  uint64_t chunk_full[kWarps][kSpmmStages];
  uint64_t chunk_empty[kWarps][kSpmmStages];
  alignas(128) uint8_t slots[];
};
inline constexpr int kSlotOverrun = 2 * kChunkRowBytes;  // windows may begin at the row after the last

__device__ inline int first_unit(int units, int grid, int block) {
  return int(int64_t(units) * block / grid);
}
/// The block whose run holds `unit`.
__device__ inline int block_of(int units, int grid, int unit) {
  return int((int64_t(unit + 1) * grid - 1) / units);
}

/// Walks a strip's chunks, round and round. StripShape::chunk_blocks without its divisions.
struct ChunkWalk {
  int chunk;
  int remainder;  // blocks · chunk modulo chunks

  __device__ ChunkWalk(const Problem& p, int first)
      : chunk(first), remainder(int(int64_t(p.blocks) * first % p.shape.chunks)) {}
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

}  // namespace spinfer::cuda::spmm
