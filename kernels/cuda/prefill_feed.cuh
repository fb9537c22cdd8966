// The producer warps of the Hopper prefill kernel (spmm_prefill.cu): they bring X tiles and chunks of strips
// into shared memory.
#pragma once

#include <cuda.h>

#include "kernels/cuda/prefill_problem.cuh"
#include "kernels/cuda/ptx_cluster.cuh"

namespace spinfer::cuda::prefill {

/// A lane's strip: its chunks, in the order they are multiplied. Where a chunk's rows lie is read from its
/// record while its slot is still in use. Lanes beyond the block's strips, and strips beyond the matrix, have
/// nothing to fetch but keep step.
class ChunkFeed {
 public:
  __device__ ChunkFeed(const Problem& p, const SharedMap& map, int cluster, int block, int strip)
      : p_(p), map_(map), schedule_(p, cluster), block_(block), strip_(strip) {
    // Read once, or again soon by the clusters with the other tokens.
    policy_ = p.tiles_n == 1 ? ptx::evict_first_policy() : ptx::evict_normal_policy();
  }

  /// Goes to the next chunk; false behind the last.
  __device__ bool advance() {
    if (chunk_ + 1 >= segment_.end) {
      if (!schedule_.next(segment_)) return false;
      chunk_ = segment_.begin - 1;
      const int rows = row_group(p_, segment_.tile, block_, strip_ / kGroupStrips);
      mine_ = strip_ < p_.groups * kGroupStrips && has_rows(p_, rows);
      if (mine_) {
        const int64_t strip = int64_t(rows) * kGroupStrips + strip_ % kGroupStrips;
        strip_records_ = p_.w.records + strip * p_.record_bytes;
        strip_values_ = p_.w.values + int64_t(p_.w.places[strip].row) * kTrackRowBytes;
      }
    }
    ++chunk_;
    if (!mine_) return true;
    const int begin = block_begin(p_, chunk_);
    record_bytes_ = uint32_t(prefill_slot_bytes(block_begin(p_, chunk_ + 1) - begin, 0));
    record_ = strip_records_ + chunk_ * int(sizeof(ChunkHead)) + int64_t(begin) * kMaskRowBytes;
    const auto* head = reinterpret_cast<const ChunkHead*>(record_);
    first_row_ = __ldg(&head->first_row);
    row_count_ = __ldg(&head->rows);
    return true;
  }

  /// Fetches the chunk as soon as its slot is empty.
  __device__ void fetch() {
    if (!mine_) return;
    const uint8_t* rows = strip_values_ + uint64_t(first_row_) * kTrackRowBytes;
    const uint32_t row_bytes = row_count_ * kTrackRowBytes;
    const uint32_t slot = map_.slot(strip_, ring_.stage), full = map_.chunk_full(strip_, ring_.stage);
    ptx::barrier_wait(map_.chunk_empty(strip_, ring_.stage), ring_.phase ^ 1);
    ptx::barrier_arrive_expect(full, record_bytes_ + row_bytes);
    ptx::copy_bulk(slot, record_, record_bytes_, full, policy_);
    if (row_bytes) ptx::copy_bulk(slot + record_bytes_, rows, row_bytes, full, policy_);
    ring_.advance(kPrefillSlots);
  }

 private:
  const Problem& p_;
  const SharedMap& map_;
  Schedule schedule_;
  int block_, strip_;
  uint64_t policy_;
  Segment segment_;
  Ring ring_;
  bool mine_ = false;
  int chunk_ = 0;
  const uint8_t* strip_records_ = nullptr;
  const uint8_t* strip_values_ = nullptr;
  const uint8_t* record_ = nullptr;
  uint32_t record_bytes_ = 0, first_row_ = 0, row_count_ = 0;
};

/// One warp: the chunks of the block's strips, a lane a strip.
__device__ inline void feed_chunks(const Problem& p, const SharedMap& map, int cluster, int block) {
  ChunkFeed chunks(p, map, cluster, block, int(threadIdx.x % 32));
  while (chunks.advance()) chunks.fetch();
}

/// One thread: this block's half of every X tile, multicast to both blocks of the cluster.
template <int kN, int kStages>
__device__ void feed_x(const Problem& p, const SharedMap& map, const CUtensorMap* x, int cluster, int block) {
  constexpr int kHalf = kN / kPrefillClusterBlocks;
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
      for (int stage = 0; stage < kStages; ++stage, column += kPrefillStageColumns) {
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
