// The producer warps of the Hopper prefill kernel (spmm_prefill.cu): they bring X tiles and chunks of strips
// into shared memory.
#pragma once

#include <cuda.h>

#include "kernels/cuda/piece_ring.cuh"
#include "kernels/cuda/prefill_problem.cuh"
#include "kernels/cuda/ptx_cluster.cuh"

namespace spinfer::cuda::prefill {

/// A strip of a block, segment after segment; those in which it does not exist are left out.
class StripWalk {
 public:
  __device__ StripWalk(const Problem& p, int cluster, int block, int strip)
      : p_(p), schedule_(p, cluster), block_(block), strip_(strip) {}
  /// False behind the last segment.
  __device__ bool next(Segment& segment, int64_t& strip) {
    while (strip_ < p_.groups * kGroupStrips && schedule_.next(segment)) {
      const int rows = row_group(p_, segment.tile, block_, strip_ / kGroupStrips);
      strip = int64_t(rows) * kGroupStrips + strip_ % kGroupStrips;
      if (has_rows(p_, rows)) return true;
    }
    return false;
  }

 private:
  const Problem& p_;
  Schedule schedule_;
  int block_, strip_;
};

__device__ inline const uint8_t* record_of(const Problem& p, int64_t strip, int chunk) {
  return p.w.records + strip * p.record_bytes + chunk * int(sizeof(ChunkHead)) +
         int64_t(block_begin(p, chunk)) * kMaskRowBytes;
}

/// The pieces of a strip's segments, one after the other, into its ring. A segment's chunks need those from
/// its first chunk's first one until the last that its chunks and the ones before need.
class PieceFeed {
 public:
  __device__ PieceFeed(const Problem& p, const SharedMap& map, int cluster, int block, int strip)
      : p_(p), walk_(p, cluster, block, strip) {
    look_ahead();
    next_segment();
  }
  __device__ bool more() const { return left_ > 0; }
  /// Brings the next piece if its slot is free.
  __device__ bool bring(const SharedMap& map, int strip, uint64_t policy) {
    const uint32_t slot = brought_ % kRingPieces;
    if (!ptx::barrier_test(map.piece_empty(strip) + 8 * slot, (brought_ / kRingPieces & 1) ^ 1)) return false;
    copy_piece(map.ring(strip), slot, map.piece_full(strip) + 8 * slot, from_, policy);
    ++brought_;
    from_ += kPieceBytes;
    if (--left_ == 0) next_segment();
    return true;
  }

 private:
  __device__ void next_segment() {
    from_ = next_from_;
    left_ = next_left_;
    if (left_ > 0) look_ahead();
  }
  /// Looks up where the next segment's pieces lie.
  __device__ void look_ahead() {
    Segment segment;
    int64_t strip;
    next_left_ = 0;
    if (!walk_.next(segment, strip)) return;
    const auto head_of = [&](int chunk) {
      return reinterpret_cast<const ChunkHead*>(record_of(p_, strip, chunk));
    };
    const StripPlace place = p_.w.places[strip];
    const uint32_t first = head_of(segment.begin)->first_row / kPieceRows;
    uint32_t end = place.pieces;
    if (segment.end < p_.w.shape.chunks) end = pieces_before(*head_of(segment.end));
    next_from_ = p_.w.values + (int64_t(place.row) + first * kPieceRows) * kTrackRowBytes;
    next_left_ = end - first;
  }

  const Problem& p_;
  StripWalk walk_;
  uint32_t brought_ = 0;
  const uint8_t *from_ = nullptr, *next_from_ = nullptr;
  uint32_t left_ = 0, next_left_ = 0;  ///< a segment needs one at least
};

/// Its records.
class RecordFeed {
 public:
  __device__ RecordFeed(const Problem& p, int cluster, int block, int strip)
      : p_(p), walk_(p, cluster, block, strip) {
    more_ = walk_.next(segment_, strip_);
  }
  __device__ bool more() const { return more_; }
  __device__ bool bring(const SharedMap& map, int strip, uint64_t policy) {
    const uint32_t slot = brought_ % 2;
    if (!ptx::barrier_test(map.record_empty(strip) + 8 * slot, (brought_ / 2 & 1) ^ 1)) return false;
    const int chunk = segment_.begin, blocks = block_begin(p_, chunk + 1) - block_begin(p_, chunk);
    const uint32_t full = map.record_full(strip) + 8 * slot;
    const auto bytes = uint32_t(chunk_record_bytes(blocks));
    ptx::barrier_arrive_expect(full, bytes);
    ptx::copy_bulk(map.record(strip, slot), record_of(p_, strip_, chunk), bytes, full, policy);
    ++brought_;
    if (++segment_.begin == segment_.end) more_ = walk_.next(segment_, strip_);
    return true;
  }

 private:
  const Problem& p_;
  StripWalk walk_;
  Segment segment_;  ///< what is left of it
  int64_t strip_ = 0;
  uint32_t brought_ = 0;
  bool more_;
};

/// One warp: a lane brings the pieces of one of the block's strips, another its records. Waits for the
/// cluster's barrier once all slots are full: before a slot is used again, although nothing here needs the
/// other block, because compute-sanitizer's racecheck lets no warp of a cluster pass until all wait.
__device__ inline void feed_strips(const Problem& p, const SharedMap& map, int cluster, int block) {
  constexpr int kLanes = 16;
  const int lane = int(threadIdx.x % 32), strip = lane % kLanes;
  static_assert(kPrefillMaxGroups * kGroupStrips <= kLanes);
  // Read once, or again soon by the clusters with the other tokens.
  const uint64_t policy = p.tiles_n == 1 ? ptx::evict_first_policy() : ptx::evict_normal_policy();
  PieceFeed pieces(p, map, cluster, block, lane < kLanes ? strip : INT32_MAX);
  RecordFeed records(p, cluster, block, lane < kLanes ? INT32_MAX : strip);
  bool waited = false;
  while (__any_sync(~0u, pieces.more() || records.more())) {
    bool brought = false;
    const int turns = lanes_followed(p.for_racecheck);
#pragma unroll 1
    for (int turn = 0; turn < turns; ++turn) {
      if (lane % turns == turn) {
        if (pieces.more()) brought = pieces.bring(map, strip, policy);
        if (records.more()) brought = records.bring(map, strip, policy);
      }
      __syncwarp();
    }
    if (__any_sync(~0u, brought)) continue;
    if (waited) {
      __nanosleep(250);
    } else {
      ptx::cluster_wait();
      waited = true;
    }
  }
  if (!waited) ptx::cluster_wait();
}

/// One thread: this block's half of every X tile, multicast to both blocks of the cluster.
template <int kN>
__device__ void feed_x(const Problem& p, const SharedMap& map, const CUtensorMap* x, int cluster, int block) {
  constexpr int kHalf = kN / kPrefillClusterBlocks, kStages = prefill_stages(kN);
  Schedule schedule(p, cluster);
  Segment segment;
  uint32_t phase = 0;
  ptx::wait_for_previous_grids();  // they may write x
  while (schedule.next(segment)) {
    const int token = segment.tile % p.tiles_n * kN + block * kHalf;
    int column = block_begin(p, segment.begin) * kBlockColumns;
    const int end = block_begin(p, segment.end) * kBlockColumns;
    while (column < end) {
#pragma unroll 1
      for (int stage = 0; stage < kStages; ++stage, column += kBlockColumns) {
        ptx::barrier_wait(map.x_empty(stage), phase ^ 1);
        if (column >= end) {  // a segment ends where the ring does
          ptx::barrier_arrive(map.x_full(stage));
          continue;
        }
        ptx::barrier_arrive_expect(map.x_full(stage), uint32_t(prefill_stage_bytes(kN)));
        const uint32_t to =
            map.x + uint32_t(stage * prefill_stage_bytes(kN) + block * prefill_stage_bytes(kHalf));
        ptx::copy_box_multicast(to, x, column, token, map.x_full(stage), 3);
      }
      phase ^= 1;
    }
  }
}

}  // namespace spinfer::cuda::prefill
