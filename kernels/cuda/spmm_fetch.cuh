// How the Hopper SpMM (spmm_stream.cu) brings weights and X into shared memory.
#pragma once

#include "kernels/cuda/piece_ring.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/ptx_hopper.cuh"
#include "kernels/cuda/spmm_shared.cuh"
#include "kernels/cuda/spmm_sums.cuh"

namespace spinfer::cuda::spmm {

/// By one lane: a record into its slot, a piece into the ring.
__device__ inline void copy_record(uint32_t warp_map, uint32_t slot, const uint8_t* from, uint32_t bytes,
                                   uint64_t policy) {
  const uint32_t full = warp_map + uint32_t(offsetof(WarpMap, record_full)) + 8 * slot;
  ptx::barrier_arrive_expect(full, bytes);
  ptx::copy_bulk(warp_map + uint32_t(offsetof(WarpMap, record)) + slot * uint32_t(sizeof(WarpMap::record[0])),
                 from, bytes, full, policy);
}
__device__ inline void copy_piece(uint32_t warp_map, uint32_t slot, const uint8_t* from, uint64_t policy) {
  cuda::copy_piece(warp_map, slot, warp_map + uint32_t(offsetof(WarpMap, piece_full)) + 8 * slot, from,
                   policy);
}
static_assert(offsetof(WarpMap, ring) == 0);

/// A multiplying warp's part of a block's run.
struct RunOfWarp {
  const RunStart& start;
  int strip, last_strip;  ///< the first and the last
  int units;
  int end_chunk;  ///< of the last strip, exclusive
  ChunkWalk walk;

  __device__ RunOfWarp(const Problem& p, const RunStart& start, const ChunkWalk& walk, int begin, int end,
                       int team, int warp)
      : start(start), strip(team * kSpmmWarps + warp), units(end - begin), walk(walk) {
    const int last_team = p.split.team_of(end - 1);
    last_strip = last_team * kSpmmWarps + warp;
    end_chunk = end - last_team * p.shape.chunks;
  }
};

/// Who starts a copy: one lane of a warp whose lanes all have the same counts, or each lane its own.
enum class Copier { whole_warp, lane };
template <Copier kCopier>
__device__ inline bool starts_copy() {
  return kCopier == Copier::lane || ptx::elect_one();
}

/// A multiplying warp's records, one a unit, into its two slots.
template <Copier kCopier>
struct RecordFeed {
  const uint8_t* from;
  ChunkWalk walk;
  int left;
  int strip;

  /// `bring_first` has brought the first.
  __device__ RecordFeed(const Problem& p, const RunOfWarp& run)
      : from(p.records + int64_t(run.start.record) * 16), walk(run.walk), left(run.units), strip(run.strip) {
    go_on(p, run.start.record_bytes);
  }
  /// What was in the slot must have been read by all lanes.
  __device__ void bring_next(const Problem& p, uint32_t warp_map, uint32_t slot, uint64_t policy) {
    if (left == 0) return;
    const auto bytes = uint32_t(chunk_record_bytes(walk.blocks(p)));
    if (starts_copy<kCopier>()) copy_record(warp_map, slot, from, bytes, policy);
    go_on(p, bytes);
  }

 private:
  __device__ void go_on(const Problem& p, uint32_t bytes) {
    from += bytes;
    --left;
    if (walk.next(p)) [[unlikely]] {
      asm volatile("");  // a branch, or every chunk pays for it
      strip += kSpmmWarps;
      from = p.records + read_strip(p, strip) * p.record_bytes;
    }
  }
};

/// Pieces that a strip's chunks before `chunk` need.
__device__ inline uint32_t pieces_before(const Problem& p, int strip, int chunk, const StripPlace& place) {
  if (chunk == p.shape.chunks) return place.pieces;
  const auto* after =
      reinterpret_cast<const ChunkHead*>(p.records + strip * p.record_bytes + record_begin(p, chunk));
  return spinfer::pieces_before(*after);
}

/// A multiplying warp's pieces, strip after strip, into its ring.
template <Copier kCopier>
struct PieceFeed {
  const uint8_t* from;
  uint32_t left;  // of this strip in this run
  const uint8_t* next_from = nullptr;
  uint32_t next_left = 0;
  int next_strip;  // the one after that
  int last_strip;  // the run's last
  int end_chunk;   // of the last strip, exclusive
  uint32_t brought;

  /// `bring_first` has brought the first. There is always one: an empty strip's blocks need one too.
  __device__ PieceFeed(const Problem& p, const RunOfWarp& run)
      : from(p.values + int64_t(run.start.row) * kTrackRowBytes + kPieceBytes),
        left(run.start.pieces - 1),
        next_strip(run.strip + kSpmmWarps),
        last_strip(run.last_strip),
        end_chunk(run.end_chunk),
        brought(1) {}
  /// Looks up where the pieces of `next_strip` lie.
  __device__ void look_ahead(const Problem& p) {
    next_left = 0;
    if (next_strip > last_strip) return;
    const int strip = read_strip(p, next_strip);
    const StripPlace place = p.places[strip];
    next_left = place.pieces;
    if (next_strip == last_strip) next_left = pieces_before(p, strip, end_chunk, place);
    next_from = p.values + int64_t(place.row) * kTrackRowBytes;
    next_strip += kSpmmWarps;
  }
  /// The slot's last piece must have been read by all lanes. Of this strip only.
  __device__ void bring_next(uint32_t warp_map, uint64_t policy) {
    if (left == 0) return;
    if (starts_copy<kCopier>()) copy_piece(warp_map, brought % kRingPieces, from, policy);
    from += kPieceBytes;
    --left;
    ++brought;
  }
  /// Goes on to the next strip, if there is one, when this one's are all on their way.
  __device__ bool next(const Problem& p) {
    if (left > 0 || next_left == 0) return false;
    from = next_from;
    left = next_left;
    look_ahead(p);
    return true;
  }
  __device__ void bring_next_strip(const Problem& p, uint32_t given_up, uint32_t warp_map, uint64_t policy) {
    if (!next(p)) return;
#pragma unroll 1
    while (left > 0 && brought - given_up < kRingPieces) bring_next(warp_map, policy);
  }
};

/// The first record and piece of a run, as early as can be.
__device__ inline void bring_first(const Problem& p, const RunStart& start, uint32_t warp_map,
                                   uint64_t policy) {
  if (!ptx::elect_one()) return;
  copy_record(warp_map, 0, p.records + int64_t(start.record) * 16, start.record_bytes, policy);
  copy_piece(warp_map, 0, p.values + int64_t(start.row) * kTrackRowBytes, policy);
}

/// Where the warp's part of a block's run begins.
__device__ inline RunStart run_start(const Problem& p, int block, int warp) {
  const int begin = p.split.first_unit(block), end = p.split.first_unit(block + 1);
  const int team = begin / p.shape.chunks, chunk = begin - team * p.shape.chunks;
  const int strip = read_strip(p, team * kSpmmWarps + warp);
  const int64_t record = strip * p.record_bytes + record_begin(p, chunk);
  const auto* head = reinterpret_cast<const ChunkHead*>(p.records + record);
  const StripPlace place = p.places[strip];
  const uint32_t first = head->first_row / kPieceRows;
  const uint32_t last = pieces_before(p, strip, min(p.shape.chunks, end - team * p.shape.chunks), place);
  return {uint32_t(record / 16), uint32_t(chunk_record_bytes(head->blocks)), place.row + first * kPieceRows,
          last - first};
}

/// What a multiplying warp does to have its ring and its record slots refilled: it starts the copies itself.
struct OwnFeed {
  RecordFeed<Copier::whole_warp> records;
  PieceFeed<Copier::whole_warp> pieces;
  uint32_t map;  // shared address of the WarpMap
  uint64_t policy;

  __device__ OwnFeed(const Problem& p, const RunOfWarp& run, uint32_t map, uint64_t policy)
      : records(p, run), pieces(p, run), map(map), policy(policy) {}
  /// What `bring_first` has left, a piece after the other until X is there (`x_full`, its first stage's
  /// barrier). All at once would take memory some 5 µs, and X, the sums of the launch before and the first
  /// pieces of blocks that start later would stand behind it in the queue.
  __device__ void fill(const Problem& p, uint32_t x_full) {
    pieces.look_ahead(p);
#pragma unroll 1
    for (uint32_t i = 0; i + 1 < kRingPieces && pieces.left > 0; ++i) {
      const uint32_t full = map + uint32_t(offsetof(WarpMap, piece_full)) + 8 * i;
      while (!ptx::barrier_test(full, 0) && !ptx::barrier_test(x_full, 0)) {
      }
      pieces.bring_next(map, policy);
    }
    records.bring_next(p, map, 1, policy);
  }
  /// All lanes have read piece `given_up`, from 0 on.
  __device__ void give_up_piece(const Problem&, uint32_t /*given_up*/) {
    pieces.bring_next(map, policy);
  }
  /// Before the first pieces of a strip are waited for. The chunk before is not closed yet, and may have had
  /// the strip's last piece brought.
  __device__ void begin_strip(const Problem& p, uint32_t given_up) {
    pieces.bring_next_strip(p, given_up, map, policy);
  }
  /// All lanes have read a record.
  __device__ void give_up_record(const Problem& p, uint32_t record, uint32_t given_up) {
    records.bring_next(p, map, record & 1, policy);
    pieces.bring_next_strip(p, given_up, map, policy);
  }
};

/// The same where the feeding warp does it: it is told what may go.
struct FeedingWarp {
  uint32_t map;

  __device__ FeedingWarp(const Problem&, const RunOfWarp&, uint32_t map, uint64_t) : map(map) {}
  __device__ void fill(const Problem&, uint32_t) {}
  __device__ void give_up_piece(const Problem& p, uint32_t given_up) {
    if (ptx::elect_one() || p.for_racecheck)
      ptx::barrier_arrive(map + uint32_t(offsetof(WarpMap, piece_empty)) + 8 * (given_up % kRingPieces));
  }
  __device__ void begin_strip(const Problem&, uint32_t) {}
  __device__ void give_up_record(const Problem& p, uint32_t record, uint32_t) {
    if (ptx::elect_one() || p.for_racecheck)
      ptx::barrier_arrive(map + uint32_t(offsetof(WarpMap, record_empty)) + 8 * (record & 1));
  }
};

/// Whether the slot of copy `count`, from 0 on, is free: never used, or what was in it has been let go.
__device__ inline bool is_free(uint32_t empty, uint32_t count, uint32_t slots) {
  return count < slots || ptx::barrier_test(empty + 8 * (count % slots), (count / slots & 1) ^ 1);
}

/// The feeding warp: a lane brings all pieces of a multiplying warp but the first, another its records but
/// the first (`bring_first` does). A ring is filled piece by piece until X is there, for OwnFeed's reasons;
/// records come when it is. That X's first stage was full once may be missed, which costs nothing but time.
template <int kN>
__device__ inline void feed_rings(const Problem& p, SharedMap<kN>& shared, const RunStart& start, int lane) {
  const int begin = p.split.first_unit(int(blockIdx.x)), end = p.split.first_unit(int(blockIdx.x) + 1);
  const int ring = lane % kSpmmWarps;
  const int team = p.split.team_of(begin);
  const RunOfWarp run(p, start, ChunkWalk(p, begin - team * p.shape.chunks), begin, end, team, ring);
  const uint32_t map = ptx::shared_address(&shared.warp[ring]);
  const uint32_t piece_full = map + uint32_t(offsetof(WarpMap, piece_full));
  const uint32_t piece_empty = map + uint32_t(offsetof(WarpMap, piece_empty));
  const uint32_t record_empty = map + uint32_t(offsetof(WarpMap, record_empty));
  const uint32_t x_full = ptx::shared_address(&shared.x_full[0]);
  const uint64_t policy = ptx::evict_first_policy();
  PieceFeed<Copier::lane> pieces(p, run);
  RecordFeed<Copier::lane> records(p, run);
  uint32_t records_brought = 1;
  pieces.look_ahead(p);
  pieces.next(p);
  if (lane / kSpmmWarps != 0) pieces.left = 0;
  if (lane / kSpmmWarps != 1) records.left = 0;
  while (__any_sync(~0u, pieces.left > 0 || records.left > 0)) {
    bool ready = false;
    const bool filled = pieces.brought >= kRingPieces || pieces.left == 0;
    const bool ring_filled = __shfl_sync(~0u, filled, ring);
    const int turns = lanes_followed(p.for_racecheck);
#pragma unroll 1
    for (int turn = 0; turn < turns; ++turn) {
      if (lane % turns != turn) {
      } else if (pieces.left > 0) {
        ready = filled ? is_free(piece_empty, pieces.brought, kRingPieces)
                       : ptx::barrier_test(piece_full + 8 * (pieces.brought - 1), 0) ||
                             ptx::barrier_test(x_full, 0);
        if (ready) {
          pieces.bring_next(map, policy);
          pieces.next(p);
        }
      } else if (records.left > 0) {
        ready = ring_filled && is_free(record_empty, records_brought, 2);
        if (ready) records.bring_next(p, map, records_brought++ & 1, policy);
      }
      __syncwarp();
    }
    if (!__any_sync(~0u, ready)) __nanosleep(32);
  }
}

/// Arrivals of a warp that has read a stage of X: one, or where ordinary stores bring X all its lanes', each
/// for its own accesses (racecheck follows nothing less).
__device__ inline uint32_t x_readers(const Problem& p) {
  return p.x_by_copy ? 1 : 32;
}
/// Arrivals that fill a stage: one beside the bytes of bulk copies, otherwise each lane's of the producer
/// warp.
template <int kN>
__device__ inline uint32_t x_writers(const Problem& p) {
  return kUseWgmma<kN> && p.x_by_copy ? 1 : 32;
}

/// By the producer warp, for mma.sync: `count` blocks of X to a stage `to`, 16 bytes a lane and instruction;
/// `from` is where the first token's begin, a token has `row` halves. What lies in the rows of tokens that do
/// not exist touches no other token. A bulk copy a token takes longer to start.
template <int kN>
__device__ inline void copy_rows(const __half* from, int64_t row, int n, uint8_t* to, int count,
                                 uint32_t full, int lane) {
  constexpr int kVectors = kBlockColumns / 8, kTokens = 32 / kVectors;  // of a token and block; at a time
  const int token = lane / kVectors;
  from += token * row + lane % kVectors * 8;
  to += token * kXPitch + lane % kVectors * 16;
#pragma unroll
  for (int t = 0; t < kN; t += kTokens, from += kTokens * row, to += kTokens * kXPitch) {
    if (t + token >= n) break;
#pragma unroll
    for (int b = 0; b < kMaxChunkBlocks; ++b)
      if (b < count) ptx::copy_async_16(to + b * (kBlockColumns * 2), from + b * kBlockColumns, 16);
  }
  ptx::copies_arrive(full);
}

/// The producer warp: brings X, stage by stage, for all units of the block.
template <int kN>
__device__ inline void bring_x(const Problem& p, const CUtensorMap* map, SharedMap<kN>& shared, int lane) {
  const int begin = p.split.first_unit(int(blockIdx.x));
  const int units = p.split.first_unit(int(blockIdx.x) + 1) - begin;
  ChunkWalk walk(p, begin - p.split.team_of(begin) * p.shape.chunks);
  int stage = 0;
  uint32_t parity = 1;  // the stages begin empty
  bool first = true;    // X is not there before the grids before this one are done
  int block = block_begin(p, walk.chunk);
  for (int unit = 0; unit < units; ++unit) {
    const int last = block + walk.blocks(p);
    for (; block < last; block += p.x_blocks) {
      const int count = min(p.x_blocks, last - block);
      const uint32_t full = ptx::shared_address(&shared.x_full[stage]);
      ptx::barrier_wait(ptx::shared_address(&shared.x_empty[stage]), parity);
      uint8_t* to = shared.x[stage];
      if (first) ptx::wait_for_previous_grids();
      first = false;
      if (p.x_by_copy) {
        if constexpr (!kUseWgmma<kN>) {
          copy_rows<kN>(p.x + block * kBlockColumns, p.shape.k, p.n, to, count, full, lane);
        } else if (ptx::elect_one()) {
          ptx::barrier_arrive_expect(full, count * kN * 128);
          for (int i = 0; i < count; ++i)
            ptx::copy_box(ptx::shared_address(to + i * kN * 128), map, (block + i) * kBlockColumns, 0, full);
        }
      } else {
        for (int i = lane; i < count * kN * kBlockColumns; i += 32) {
          const int col = i % kBlockColumns, token = i / kBlockColumns % kN, b = i / kBlockColumns / kN;
          const int64_t k = int64_t(block + b) * kBlockColumns + col;
          const bool inside = token < p.n && k < p.shape.k;
          const int at = kUseWgmma<kN> ? (b * kN + token) * 128 + ((col / 8 ^ token % 8) * 8 + col % 8) * 2
                                       : token * kXPitch + (b * kBlockColumns + col) * 2;
          *reinterpret_cast<__half*>(to + at) = inside ? p.x[token * p.shape.k + k] : __half(0.0f);
        }
        ptx::fence_async_proxy();  // wgmma reads what ordinary stores wrote
        ptx::barrier_arrive(full);
      }
      if (++stage == kXStages) {
        stage = 0;
        parity ^= 1;
      }
    }
    block = walk.next(p) ? 0 : last;
  }
}

/// Of DeferredNorm::moments, one token's. Out of the way: inlined, it costs the main loop its uniform
/// registers.
static __device__ __noinline__ float sum_of_parts(const unsigned long long* moments, int n) {
  float sum = 0;
#pragma unroll
  for (int part = 0; part < kMomentParts; ++part) sum += float(static_cast<long long>(moments[part * n]));
  return sum;
}

/// Asks for what the end of a team reads of its rows besides sums: no step has read it since the last one, so
/// it is far away.
__device__ inline void prefetch_rows(const Problem& p, int team, int lane) {
  const int strip = min(team * kSpmmWarps + lane / kStripTiers, p.strips - 1);
  const int64_t row = min(p.shape.tier_row(strip, lane % kStripTiers), p.shape.m - 1);
  if (lane >= kSpmmWarps * kStripTiers) return;
  if (p.epilogue.bias) ptx::prefetch(p.epilogue.bias + row);
  if (p.norm_of_y.moments) ptx::prefetch(p.norm_of_y.gain + row);
  if (p.norm_of_x.gain_product) {
    ptx::prefetch(p.norm_of_x.gain_product + row);
    ptx::prefetch(p.norm_of_x.bias_product + row);
  }
}

/// A warp that finds what the others need at the end of a team.
template <int kN>
__device__ inline void prepare_ends(const Problem& p, SharedMap<kN>& shared, int lane) {
  const TeamShare team = TeamShare::of(p.split, int(blockIdx.x), kStripItems<kN>, p.gated);
  if (lane == 0) shared.last_team = team;
  for (int entry = lane; entry < team.entries; entry += 32)
    shared.entry_offsets[entry] = entry_offset<kN>(team, entry);
  prefetch_rows(p, p.split.team_of(p.split.first_unit(int(blockIdx.x) + 1) - 1), lane);
  ptx::wait_for_previous_grids();
  if (const NormOfX& norm = p.norm_of_x; norm.moments) {
    for (int token = lane; token < p.n; token += 32) {
      float variance = sum_of_parts(norm.moments + token, p.n) * norm.per_moment, mean = 0;
      if (norm.gain_product) {
        mean = sum_of_parts(norm.moments + kMomentParts * p.n + token, p.n) * norm.per_moment;
        variance = fmaxf(variance - mean * mean, 0.0f);
      }
      const float scale = rsqrtf(variance + norm.eps);
      shared.x_scale[0][token] = norm.bound * scale;
      shared.x_scale[1][token] = mean * scale;
    }
  }
  ptx::barrier_arrive(ptx::shared_address(&shared.ends));
}

}  // namespace spinfer::cuda::spmm
