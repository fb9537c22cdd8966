// How the Hopper SpMM (spmm_stream.cu) brings weights and X into shared memory.
#pragma once

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/ptx_hopper.cuh"
#include "kernels/cuda/spmm_shared.cuh"

namespace spinfer::cuda::spmm {

/// A multiplying warp's records, one a unit, into its two slots. All lanes have the same counts; one starts
/// the copies.
struct RecordFeed {
  const uint8_t* from;
  ChunkWalk walk;
  int left;
  int64_t to_next_team;  // from a strip's end to the beginning of the warp's next

  __device__ RecordFeed(const Problem& p, int strip, int units, const ChunkWalk& walk)
      : from(p.records + strip * p.record_bytes + record_begin(p, walk.chunk)),
        walk(walk),
        left(units),
        to_next_team((kSpmmWarps - 1) * p.record_bytes) {}
  /// What was in the slot must have been read by all lanes.
  __device__ void bring_next(const Problem& p, uint32_t warp_map, uint32_t slot, uint64_t policy) {
    if (left == 0) return;
    const uint32_t bytes = uint32_t(sizeof(ChunkHead)) + walk.blocks(p) * kMaskRowBytes;
    if (ptx::elect_one()) {
      const uint32_t full = warp_map + uint32_t(offsetof(WarpMap, record_full)) + 8 * slot;
      ptx::barrier_arrive_expect(full, bytes);
      ptx::copy_bulk(
          warp_map + uint32_t(offsetof(WarpMap, record)) + slot * uint32_t(sizeof(WarpMap::record[0])), from,
          bytes, full, policy);
    }
    from += bytes;
    --left;
    if (walk.next(p)) [[unlikely]] {
      asm volatile("");  // a branch, or every chunk pays for it
      from += to_next_team;
    }
  }
};

/// A multiplying warp's pieces, strip after strip, into its ring.
struct PieceFeed {
  const uint8_t* from;
  uint32_t left;  // of this strip in this run
  const uint8_t* next_from = nullptr;
  uint32_t next_left = 0;
  int next_strip;  // the one after that
  int last_strip;  // the run's last
  int end_chunk;   // of the last strip, exclusive
  uint32_t brought = 0;

  __device__ PieceFeed(const Problem& p, int strip, int begin_chunk, int last_strip, int end_chunk)
      : next_strip(strip), last_strip(last_strip), end_chunk(end_chunk) {
    find(p, begin_chunk, from, left);
    find(p, 0, next_from, next_left);
  }
  /// Where the pieces of `next_strip` lie, from a chunk's first on.
  __device__ void find(const Problem& p, int begin_chunk, const uint8_t*& at, uint32_t& count) {
    count = 0;
    if (next_strip > last_strip) return;
    const uint8_t* records = p.records + next_strip * p.record_bytes;
    const StripPlace place = p.places[next_strip];
    uint32_t begin = 0, end = place.pieces;
    if (begin_chunk > 0)
      begin =
          reinterpret_cast<const ChunkHead*>(records + record_begin(p, begin_chunk))->first_row / kPieceRows;
    if (next_strip == last_strip && end_chunk < p.shape.chunks) {
      const auto* after = reinterpret_cast<const ChunkHead*>(records + record_begin(p, end_chunk));
      end = after->first_row / kPieceRows + (after->waits >> 4);
    }
    at = p.values + int64_t(place.row + begin * kPieceRows) * kTrackRowBytes;
    count = end - begin;
    next_strip += kSpmmWarps;
  }
  /// The slot's last piece must have been read by all lanes. Of this strip only.
  __device__ void bring_next(uint32_t warp_map, uint64_t policy) {
    if (left == 0) return;
    const uint32_t slot = brought % kRingPieces;
    if (ptx::elect_one()) {
      const uint32_t full = warp_map + uint32_t(offsetof(WarpMap, piece_full)) + 8 * slot;
      // Into the last slot a row more: the ring's last row repeats its first.
      const uint32_t bytes = slot == kRingPieces - 1 ? kPieceBytes + kTrackRowBytes : kPieceBytes;
      ptx::barrier_arrive_expect(full, bytes);
      ptx::copy_bulk(warp_map + slot * kPieceBytes, from, bytes, full, policy);
    }
    from += kPieceBytes;
    --left;
    ++brought;
  }
  /// Goes on to the next strip when this one's are all on their way.
  __device__ void bring_next_strip(const Problem& p, uint32_t given_up, uint32_t warp_map, uint64_t policy) {
    if (left > 0 || next_left == 0) return;
    from = next_from;
    left = next_left;
    find(p, 0, next_from, next_left);
#pragma unroll 1
    while (left > 0 && brought - given_up < kRingPieces) bring_next(warp_map, policy);
  }
};
static_assert(offsetof(WarpMap, ring) == 0);

/// Arrivals of a warp at X's barriers: one, or where ordinary stores bring X all its lanes', each for its own
/// accesses (racecheck follows nothing less).
__device__ inline uint32_t x_arrivals(const Problem& p) {
  return p.x_by_box ? 1 : 32;
}

/// The producer warp: brings X, stage by stage, for all units of the block.
template <int kN>
__device__ inline void bring_x(const Problem& p, const CUtensorMap* map, SharedMap<kN>& shared,
                               ChunkWalk walk, int units, int lane) {
  ptx::wait_for_previous_grids();
  int stage = 0;
  uint32_t parity = 1;  // the stages begin empty
  int block = block_begin(p, walk.chunk);
  for (int unit = 0; unit < units; ++unit) {
    const int last = block + walk.blocks(p);
    for (; block < last; block += p.x_blocks) {
      const int count = min(p.x_blocks, last - block);
      const uint32_t full = ptx::shared_address(&shared.x_full[stage]);
      ptx::barrier_wait(ptx::shared_address(&shared.x_empty[stage]), parity);
      if (p.x_by_box) {
        if (lane == 0) {
          ptx::barrier_arrive_expect(full, count * kN * 128);
          for (int i = 0; i < count; ++i) {
            ptx::copy_box(ptx::shared_address(shared.x[stage][i]), map, (block + i) * kBlockColumns, 0, full);
          }
        }
      } else {
        for (int i = lane; i < count * kN * kBlockColumns; i += 32) {
          const int col = i % kBlockColumns, token = i / kBlockColumns % kN, b = i / kBlockColumns / kN;
          const int64_t k = int64_t(block + b) * kBlockColumns + col;
          const bool inside = token < p.n && k < p.shape.k;
          auto* row = reinterpret_cast<__half*>(shared.x[stage][b] + token * 128);
          row[(col / 8 ^ token % 8) * 8 + col % 8] = inside ? p.x[token * p.shape.k + k] : __half(0.0f);
        }
        ptx::fence_async_proxy();  // wgmma reads what ordinary stores wrote
        ptx::barrier_arrive(full);
      }
      if (++stage == kXStages<kN>) {
        stage = 0;
        parity ^= 1;
      }
    }
    block = walk.next(p) ? 0 : last;
  }
}

}  // namespace spinfer::cuda::spmm
