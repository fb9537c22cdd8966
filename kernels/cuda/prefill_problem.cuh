// What the warps of the Hopper prefill kernel (spmm_prefill.cu) share: the problem, the shared-memory map,
// who does which chunks of which tiles.
#pragma once

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/prefill_tile.h"
#include "kernels/cuda/ptx.cuh"

namespace spinfer::cuda::prefill {

/// Everything a launch needs, by value.
struct Problem {
  StripStreamView w;
  int n;
  int groups;  ///< multiplying warpgroups of a block
  int tiles_n, clusters, whole_tiles, stream_tiles;
  int units, extra_units;   ///< stream tiles' chunks a cluster has; the first `extra_units` have one more
  int blocks;               ///< of a chunk, rounded down
  uint32_t block_fraction;  ///< what that leaves out, in 2^-32 of a block, rounded up
  int64_t record_bytes;     ///< of a strip
  bool quads;               ///< rows of y and of the residual are 8-byte aligned, m is a multiple of 4
  float* partials;          ///< [cluster][block][warpgroup][64 · n_tile]
  int* flags;  ///< [cluster][block][warpgroup], zero between launches: 1 = partial sums are there
  __half* y;
  Epilogue epilogue;
  bool for_racecheck;  ///< see piece_ring.cuh
};

/// StripShape::block_begin without a division: chunk · blocks / chunks < 2^32 / chunks, so the rounding never
/// shows.
__device__ inline int block_begin(const Problem& p, int chunk) {
  return p.blocks * chunk + int(__umulhi(uint32_t(chunk), p.block_fraction));
}

/// First of the stream tiles' units (a chunk of a tile) that `cluster` has.
__device__ inline int first_unit(const Problem& p, int cluster) {
  return p.units * cluster + min(cluster, p.extra_units);
}

/// Chunks [begin, end) of a tile, for one cluster.
struct Segment {
  int tile = 0;
  int begin = 0, end = 0;
};

/// A cluster's work in order: its share of the stream tiles, then its whole tiles.
class Schedule {
 public:
  __device__ Schedule(const Problem& p, int cluster)
      : p_(p),
        unit_(first_unit(p, cluster)),
        end_(first_unit(p, cluster + 1)),
        whole_(p.stream_tiles + cluster) {}
  __device__ bool next(Segment& segment) {
    const int chunks = p_.w.shape.chunks;
    if (unit_ < end_) {
      segment.tile = int(unsigned(unit_) / unsigned(chunks));
      segment.begin = unit_ - segment.tile * chunks;
      segment.end = min(chunks, segment.begin + end_ - unit_);
      unit_ += segment.end - segment.begin;
      return true;
    }
    if (whole_ >= p_.stream_tiles + p_.whole_tiles) return false;
    segment = {whole_, 0, chunks};
    whole_ += p_.clusters;
    return true;
  }

 private:
  const Problem& p_;
  int unit_, end_, whole_;
};

/// The rows of 64 that a warpgroup owns in a tile; beyond the matrix it has nothing to multiply.
__device__ inline int row_group(const Problem& p, int tile, int block, int group) {
  return (tile / p.tiles_n * kPrefillClusterBlocks + block) * p.groups + group;
}
__device__ inline bool has_rows(const Problem& p, int row_group) {
  return int64_t(row_group) * kGroupStrips < p.w.shape.strips();
}

/// Of a warpgroup's partial sums and their flag.
__device__ inline int64_t partial_index(const Problem& p, int cluster, int block, int group) {
  return (int64_t(cluster) * kPrefillClusterBlocks + block) * p.groups + group;
}

/// Tells the compiler that a warp's threads have the same value: it may live in uniform registers, and what
/// is computed of it too. Also keeps it from being computed anew wherever it is used: addresses of a
/// cluster's shared memory and thread numbers come from special registers, a third of the main loop's
/// instructions otherwise.
__device__ inline uint32_t uniform(uint32_t value) {
  return __shfl_sync(~0u, value, 0);
}

/// Where things lie in this block's shared memory, as shared addresses.
struct SharedMap {
  uint32_t x, barriers;

  template <int kN>
  __device__ static SharedMap make(const unsigned char* base) {
    const uint32_t x = uniform(ptx::shared_address(base));
    return {x, x + uint32_t(prefill_stages(kN) * prefill_stage_bytes(kN))};
  }
  __device__ uint32_t x_full(int stage) const { return at(offsetof(PrefillBarriers, x_full), stage); }
  __device__ uint32_t x_empty(int stage) const { return at(offsetof(PrefillBarriers, x_empty), stage); }
  /// The first of a strip's kRingPieces, then of its two.
  __device__ uint32_t piece_full(int strip) const {
    return at(offsetof(PrefillBarriers, piece_full), strip * kRingPieces);
  }
  __device__ uint32_t piece_empty(int strip) const {
    return at(offsetof(PrefillBarriers, piece_empty), strip * kRingPieces);
  }
  __device__ uint32_t record_full(int strip) const {
    return at(offsetof(PrefillBarriers, record_full), strip * 2);
  }
  __device__ uint32_t record_empty(int strip) const {
    return at(offsetof(PrefillBarriers, record_empty), strip * 2);
  }
  __device__ uint32_t ring(int strip) const {
    return barriers + uint32_t(sizeof(PrefillBarriers)) + uint32_t(strip) * uint32_t(sizeof(PrefillStrip));
  }
  __device__ uint32_t record(int strip, uint32_t slot) const {
    return ring(strip) + uint32_t(offsetof(PrefillStrip, record)) +
           slot * uint32_t(sizeof(PrefillStrip::record[0]));
  }

 private:
  __device__ uint32_t at(size_t array, int i) const { return barriers + uint32_t(array) + uint32_t(i) * 8; }
};

}  // namespace spinfer::cuda::prefill
