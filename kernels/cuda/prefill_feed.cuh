// The producer warps of the Hopper prefill kernel (spmm_prefill.cu): they bring X tiles and chunks of strips
// into shared memory.
#pragma once

#include <cuda.h>

#include "kernels/cuda/prefill_problem.cuh"
#include "kernels/cuda/ptx_cluster.cuh"

namespace spinfer::cuda::prefill {

/// One thread: this block's half of every X tile, multicast to both blocks of the cluster.
template <int kN>
__device__ void feed_x(const Problem& p, const SharedMap& map, const CUtensorMap* x, int cluster, int block) {
  constexpr int kHalf = kN / kPrefillClusterBlocks;
  Schedule schedule(p, cluster);
  Segment segment;
  Ring ring;
  ptx::wait_for_previous_grids();  // they may write x
  while (schedule.next(segment)) {
    const int token = segment.tile % p.tiles_n * kN + block * kHalf;
    constexpr int kStages = kBlockColumns / kPrefillStageColumns;
    const int end = block_begin(p, segment.end) * kStages;
#pragma unroll 1
    for (int i = block_begin(p, segment.begin) * kStages; i < end; ++i) {
      ptx::barrier_wait(map.x_empty(ring.stage), ring.phase ^ 1);
      ptx::barrier_arrive_expect(map.x_full(ring.stage), uint32_t(prefill_stage_bytes(kN)));
      const uint32_t to =
          map.x + uint32_t(ring.stage * prefill_stage_bytes(kN) + block * prefill_stage_bytes(kHalf));
      ptx::copy_box_multicast(to, x, i * kPrefillStageColumns, token, map.x_full(ring.stage), 3);
      ring.advance(p.stages);
    }
  }
}

/// One thread: a strip's chunks, in the order they are multiplied. Where the next chunk's rows lie is read
/// from its record while this one is on its way.
class ChunkFeed {
 public:
  __device__ ChunkFeed(const Problem& p, const SharedMap& map, int cluster, int block, int strip)
      : p_(p), map_(map), schedule_(p, cluster), block_(block), strip_(strip) {
    // Read once, or again soon by the clusters with the other tokens.
    policy_ = p.tiles_n == 1 ? ptx::evict_first_policy() : ptx::evict_normal_policy();
  }

  __device__ void run() {
    Ring ring;
    bool more = find_next();
    while (more) {
      const uint8_t* record = record_;
      const uint8_t* rows = strip_values_ + uint64_t(first_row_) * kTrackRowBytes;
      const uint32_t record_bytes = uint32_t(prefill_slot_bytes(blocks_, 0));
      const uint32_t row_bytes = row_count_ * kTrackRowBytes;
      more = find_next();
      const uint32_t slot = map_.slot(strip_, ring.stage), full = map_.chunk_full(strip_, ring.stage);
      ptx::barrier_wait(map_.chunk_empty(strip_, ring.stage), ring.phase ^ 1);
      ptx::barrier_arrive_expect(full, record_bytes + row_bytes);
      ptx::copy_bulk(slot, record, record_bytes, full, policy_);
      if (row_bytes) ptx::copy_bulk(slot + record_bytes, rows, row_bytes, full, policy_);
      ring.advance(kPrefillSlots);
    }
  }

 private:
  /// Finds the next chunk and begins to load where its rows lie.
  __device__ bool find_next() {
    while (chunk_ + 1 >= segment_.end) {
      if (!schedule_.next(segment_)) return false;
      chunk_ = segment_.begin - 1;
      const int rows = row_group(p_, segment_.tile, block_, strip_ / 4);
      if (!has_rows(p_, rows)) {
        segment_.end = segment_.begin;  // nothing to decode there
        continue;
      }
      const int64_t strip = int64_t(rows) * 4 + strip_ % 4;
      strip_records_ = p_.w.records + strip * p_.record_bytes;
      strip_values_ = p_.w.values + int64_t(p_.w.places[strip].row) * kTrackRowBytes;
    }
    ++chunk_;
    const int begin = block_begin(p_, chunk_);
    blocks_ = block_begin(p_, chunk_ + 1) - begin;
    record_ = strip_records_ + chunk_ * int(sizeof(ChunkHead)) + int64_t(begin) * kTrackRowBytes;
    const auto* head = reinterpret_cast<const ChunkHead*>(record_);
    first_row_ = __ldg(&head->first_row);
    row_count_ = __ldg(&head->rows);
    return true;
  }

  const Problem& p_;
  const SharedMap& map_;
  Schedule schedule_;
  int block_, strip_;
  uint64_t policy_;
  Segment segment_;
  int chunk_ = 0, blocks_ = 0;
  const uint8_t* strip_records_ = nullptr;
  const uint8_t* strip_values_ = nullptr;
  const uint8_t* record_ = nullptr;
  uint32_t first_row_ = 0, row_count_ = 0;
};

}  // namespace spinfer::cuda::prefill
