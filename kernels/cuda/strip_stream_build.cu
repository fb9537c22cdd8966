// Makes strip streams (kernels/format/strip_stream.h) from canonical TCA-BME arrays, on the GPU, once per
// weight.
//
// Records  A warp a strip, lane = lane of its two streams. Reads bitmaps only, walks chunk after chunk, deals
//          streams to tracks from where the chunk before ended: a chain, but a short one.
// Places   A scan of the strips' rows, one thread block.
// Values   A thread block a chunk, a warp a block: a tier's values are one run of the canonical array, the
//          record says where each lane's go. They meet in shared memory, so that whole rows are stored; rows
//          that neighbouring chunks share are or-ed into zeros.
#include <cub/block/block_scan.cuh>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/spmm.h"

namespace spinfer::cuda {
namespace {

constexpr int kTiersPerGroupTile = kGroupTile / kTierRows;
constexpr int kTierBitmaps = kBitmapsPerGroupTile / kTiersPerGroupTile;  // of a block
static_assert(kTierBitmaps * kStripTiers == kStripLanes, "a lane reads one bitmap");

struct Totals {
  uint64_t rows;
  int max_chunk_rows;
  int uneven;  ///< strips with chunks that do not fit the ring
};

/// A tier's share of a block in the canonical arrays.
struct TierSource {
  int64_t group;  ///< the GroupTile that has it
  int first;      ///< its first bitmap there

  __device__ TierSource(const TcaBmeView& w, int64_t row, int block)
      : group(int64_t(uint64_t(row) / kGroupTile) * group_tiles(w.k) + block),
        first(int(uint32_t(row) % kGroupTile / kTierRows * kTierBitmaps)) {}

  __device__ const uint64_t* bitmaps(const TcaBmeView& w) const {
    return w.bitmaps + group * kBitmapsPerGroupTile + first;
  }
  /// The first value, by a warp: those of the tiers above in the GroupTile come before.
  __device__ const Half* values(const TcaBmeView& w, int lane) const {
    const uint64_t* all = w.bitmaps + group * kBitmapsPerGroupTile;
    int above = 0;
    if (lane < first) above = __popcll(all[lane]);
    if (lane + kStripLanes < first) above += __popcll(all[lane + kStripLanes]);
    return w.values + w.offset(group) + __reduce_add_sync(~0u, above);
  }
};

/// Lane i gives the strip's bitmap i of a block and gets its own lane_mask of both tiers, the first in the
/// low word: 32×32 pairs of bits, transposed.
__device__ uint64_t lane_masks(uint64_t bitmap, int lane) {
#pragma unroll
  for (int step = kStripLanes / 2; step; step /= 2) {
    const uint64_t low = ~uint64_t{0} / ((uint64_t{1} << (2 * step)) + 1);  // pairs whose number lacks `step`
    const uint64_t other = __shfl_xor_sync(~0u, bitmap, step);
    bitmap = lane & step ? (bitmap & ~low) | (other >> (2 * step) & low)
                         : (bitmap & low) | (other << (2 * step) & ~low);
  }
  return bitmap;
}

/// mask_with_zeros for all nibbles at once, one bit each in the nibble's lowest.
__device__ uint32_t pad_mask(int half, uint32_t mask, uint32_t next) {
  constexpr uint32_t kOnes = 0x11111111u;
  uint32_t odd = mask ^ mask >> 1;  // nibbles 0 … j together, with `half`
  odd = (odd ^ odd >> 2) & kOnes;
  odd ^= odd << 4;
  odd ^= odd << 8;
  odd ^= odd << 16;
  if (half & 1) odd ^= kOnes;
  const uint32_t pairs = mask & mask >> 1, full = pairs & pairs >> 2 & kOnes;
  const uint32_t before_full = full >> 4 | uint32_t((next & 15u) == 15u) << 28;
  // A zero is due where the parity is not that before the last full nibble, which was made even.
  uint32_t last = odd & before_full, seen = before_full;
  last |= last << 4 & ~seen;
  seen |= seen << 4;
  last |= last << 8 & ~seen;
  seen |= seen << 8;
  last |= last << 16 & ~seen;
  const uint32_t due = before_full & (odd ^ last << 4);
  const uint32_t free = ~mask;
  const uint32_t lower = (free << 1 & 14u * kOnes) | (free << 2 & 12u * kOnes) | (free << 3 & 8u * kOnes);
  return mask | (free & ~lower & 15u * due);
}

/// arrange_mask in few steps.
__device__ uint32_t nibbles_to_bytes(uint32_t low_half) {
  const uint32_t pairs = (low_half | low_half << 8) & 0x00ff00ffu;
  return (pairs | pairs << 4) & 0x0f0f0f0fu;
}
__device__ uint32_t arrange(uint32_t mask) {
  return nibbles_to_bytes(mask & 0xffffu) | nibbles_to_bytes(mask >> 16) << 4;
}

/// Pieces from these positions on, and through what blocks that end there need (strip_stream.cpp).
__device__ int lowest_of(const int (&half)[kStripTiers]) {
  return __reduce_min_sync(~0u, min(half[0], half[1]));
}
__device__ int highest_of(const int (&half)[kStripTiers]) {
  return __reduce_max_sync(~0u, max(half[0], half[1]));
}
__device__ int first_piece(const int (&half)[kStripTiers]) {
  return lowest_of(half) / (2 * kPieceRows);
}
__device__ int pieces_until(const int (&half)[kStripTiers]) {
  return (highest_of(half) / 2 + 1) / kPieceRows + 1;
}

/// Of a stream in a chunk; ends of tracks differ by less than kMostLength + kMaxLag + 2.
constexpr int kMostLength = kMaxChunkBlocks * 32;
static_assert(kMostLength + kMaxLag + 2 < 1 << 10, "keys of `ranks`");

/// What a warp keeps of its strip.
struct SharedStrip {
  uint64_t masks[kMaxChunkBlocks][kStripLanes];  ///< lane_masks of a chunk
  int track[kStripTracks];                       ///< by rank, in each 32 tracks
  int end[kStripTracks];                         ///< by rank, then by track
};

/// One strip on its way through a warp. What is no array is the same in all lanes.
struct StripWalk {
  const StripShape& shape;
  SharedStrip& shared;
  const uint64_t* first_bitmap;  ///< of block 0 that the lane reads
  int lane;
  uint8_t* record;  ///< the next chunk's
  int arrived = 0, strip_rows = 0, max_chunk_rows = 0;
  bool fits = true;
  /// Of the lane's streams, tier by tier.
  int track[kStripTiers], half[kStripTiers];
  uint64_t bitmaps[kMaxChunkBlocks];  ///< of the chunk that is dealt next

  /// Reads the next chunk's bitmaps, one of each block a lane. There may be none.
  __device__ void read_bitmaps(int begin, int blocks) {
    const uint64_t* first = first_bitmap + int64_t(begin) * kBitmapsPerGroupTile;
#pragma unroll
    for (int i = 0; i < kMaxChunkBlocks; ++i) bitmaps[i] = i < blocks ? first[i * kBitmapsPerGroupTile] : 0;
  }
  /// Turns them into masks.
  __device__ void make_masks(int blocks) {
#pragma unroll
    for (int i = 0; i < kMaxChunkBlocks; ++i)
      shared.masks[i][lane] = i < blocks ? lane_masks(bitmaps[i], lane) : 0;
  }

  __device__ uint32_t mask(int block, int tier) const {
    return uint32_t(shared.masks[block][lane] >> (32 * tier));
  }

  /// How many lanes have a lower first (low half of the result) and a lower second key, of equals the lanes
  /// before. Keys are below 2^10.
  __device__ uint32_t ranks(int first, int second) const {
    const uint32_t keys = uint32_t(second << 5 | lane) << 16 | uint32_t(first << 5 | lane);
    uint32_t rank = 0;
#pragma unroll 8
    for (int i = 0; i < kStripLanes; ++i)  // bits 15 and 31 stay where the other key is not higher
      rank += ((keys | 0x80008000u) - __shfl_sync(~0u, keys, i)) >> 15 & 0x00010001u;
    return rank - 0x00010001u;  // this lane itself
  }

  /// Deals the streams of the chunk whose masks these are. `end` is where tracks `lane` and 32 + `lane`
  /// ended.
  __device__ void deal(const int (&end)[kStripTiers]) {
    int length[kStripTiers] = {};
    for (int i = 0; i < kMaxChunkBlocks; ++i) {
      length[0] += __popc(mask(i, 0));
      length[1] += __popc(mask(i, 1));
    }
    const int first_end = lowest_of(end);
    const uint32_t by_length = ranks(kMostLength - length[0], kMostLength - length[1]);
    const uint32_t by_end = ranks(end[0] - first_end, end[1] - first_end);
#pragma unroll
    for (int t = 0; t < kStripTiers; ++t) {
      const uint32_t rank = t * kStripLanes + (by_end >> (16 * t) & 0xffffu);
      shared.track[rank] = t * kStripLanes + lane;
      shared.end[rank] = end[t];
    }
    __syncwarp();
    const bool first_is_ahead = __reduce_add_sync(~0u, end[0] - end[1]) > 0;
    const bool second_is_longer = __reduce_add_sync(~0u, length[1] - length[0]) > 0;
    const int lowest = highest_of(end) - kMaxLag;
#pragma unroll
    for (int t = 0; t < kStripTiers; ++t) {
      const int rank =
          (t ^ int(first_is_ahead != second_is_longer)) * kStripLanes + (by_length >> (16 * t) & 0xffffu);
      track[t] = shared.track[rank];
      half[t] = max(shared.end[rank], lowest);
      if ((mask(0, t) & 15u) == 15u) half[t] += half[t] & 1;
    }
    __syncwarp();
  }

  /// Moves `half` on by a block and writes its masks.
  __device__ void write_masks(int block, int blocks) {
    uint32_t words[kStripTiers];
#pragma unroll
    for (int t = 0; t < kStripTiers; ++t) {
      const uint32_t padded = pad_mask(half[t], mask(block, t), block + 1 < blocks ? mask(block + 1, t) : 0u);
      half[t] += __popc(padded);
      words[t] = arrange(padded);
    }
    reinterpret_cast<uint2*>(record + sizeof(ChunkHead) + block * kMaskRowBytes)[lane] =
        make_uint2(words[0], words[1]);
  }

  __device__ void walk() {
    int begin = 0, end = shape.block_begin(1);
    read_bitmaps(begin, end);
    make_masks(end);
    deal({0, 0});
    for (int chunk = 0; chunk < shape.chunks; ++chunk) {
      const int next_end = chunk + 1 < shape.chunks ? shape.block_begin(chunk + 2) : end;
      read_bitmaps(end, next_end - end);  // while this chunk is walked
      walk_chunk(end - begin, next_end - end);
      begin = end;
      end = next_end;
    }
  }

  /// Writes a chunk's record and deals the next one, if there is one.
  __device__ void walk_chunk(int blocks, int next_blocks) {
    const int first_row = lowest_of(half) / 2;
    ChunkHead* head = reinterpret_cast<ChunkHead*>(record);
    int used = first_row / kPieceRows;
#pragma unroll
    for (int t = 0; t < kStripTiers; ++t)
      head->start[lane][t] = uint16_t(chunk_start(track[t], half[t] - used * 2 * kPieceRows));
    const int arrived_before = arrived - used;
    int first_wait = 0;
    uint64_t events = 0;
    for (int i = 0; i < blocks; ++i) {
      write_masks(i, blocks);
      const int needed = max(arrived, pieces_until(half));
      if (i == 0) {
        first_wait = needed - arrived;
      } else {
        events |= uint64_t(uint32_t(needed - arrived) & 15u) << (8 * (i - 1));
      }
      arrived = needed;
      fits = fits && arrived - used <= kRingPieces;
      if (i + 1 < blocks) {
        const int used_next = first_piece(half);
        events |= uint64_t(uint32_t(used_next - used) & 15u) << (8 * i + 4);
        used = used_next;
      }
    }
    const int end = (highest_of(half) + 1) / 2;
    strip_rows = max(strip_rows, end);
    max_chunk_rows = max(max_chunk_rows, end - first_row);
    int used_after = arrived;
    if (next_blocks > 0) {
      shared.end[track[0]] = half[0];
      shared.end[track[1]] = half[1];
      __syncwarp();
      const int track_end[kStripTiers] = {shared.end[lane], shared.end[kStripLanes + lane]};
      __syncwarp();
      make_masks(next_blocks);
      deal(track_end);
      used_after = first_piece(half);
    }
    events |= uint64_t(uint32_t(min(used_after - used, 15))) << (8 * (blocks - 1) + 4);
    if (lane == 0) {
      head->first_row = uint32_t(first_row);
      head->rows = uint16_t(end - first_row);
      head->blocks = uint8_t(blocks);
      head->waits = uint8_t(first_wait | arrived_before << 4);
      *reinterpret_cast<uint64_t*>(head->events) = events;
    }
    record += sizeof(ChunkHead) + blocks * kMaskRowBytes;
  }
};

/// Writes all records and `places`: how many pieces and, for place_strips, how many rows each strip has. A
/// thread block is a warp.
__global__ void __launch_bounds__(kStripLanes)
    write_records(TcaBmeView w, StripShape shape, uint8_t* records, StripPlace* places, Totals* totals) {
  __shared__ SharedStrip shared;
  const int64_t strip = blockIdx.x;
  const int lane = int(threadIdx.x);
  const TierSource tier(w, shape.tier_row(strip, lane / kTierBitmaps), 0);
  StripWalk walk{shape, shared, tier.bitmaps(w) + lane % kTierBitmaps, lane,
                 records + strip * shape.record_bytes()};
  walk.walk();
  if (lane != 0) return;
  places[strip] = {uint32_t(walk.strip_rows), uint32_t(walk.arrived)};
  atomicMax(&totals->max_chunk_rows, walk.max_chunk_rows);
  if (!walk.fits) atomicAdd(&totals->uneven, 1);
}

constexpr int kPlaceThreads = 512;

/// Turns `places[].row` from each strip's rows into where they begin. One thread block.
__global__ void __launch_bounds__(kPlaceThreads)
    place_strips(int64_t strips, StripPlace* places, Totals* totals) {
  using Scan = cub::BlockScan<uint64_t, kPlaceThreads>;
  __shared__ typename Scan::TempStorage storage;
  uint64_t before = 0;
  for (int64_t first = 0; first < strips; first += kPlaceThreads) {
    const int64_t strip = first + threadIdx.x;
    uint64_t begin = strip < strips ? places[strip].row : 0, sum;
    Scan(storage).ExclusiveSum(begin, begin, sum);
    if (strip < strips) places[strip].row = uint32_t(before + begin);
    before += sum;
    __syncthreads();  // `storage` is used anew
  }
  if (threadIdx.x == 0) totals->rows = before;
}

/// A warp that brings a block's values to a chunk's rows in shared memory.
struct BlockScatter {
  int lane;
  const Half* values;                    ///< tier 0's first of this block
  const Half* second_values;             ///< tier 1's, or null: they follow tier 0's
  const uint64_t* bitmaps[kStripTiers];  ///< the tier's of this block
  uint32_t track[kStripTiers];           ///< shared address in the chunk's first row
  int half[kStripTiers];                 ///< from there on
  uint32_t word[kStripTiers];            ///< masks as stored

  __device__ void put(int tier, uint16_t value) {
    // a row a word: the second half is 2 bytes behind the first, the next word a row
    const int h = half[tier];
    ptx::store_shared_16(
        track[tier] + uint32_t(h * (kTrackRowBytes / 2) - (h & 1) * (kTrackRowBytes / 2 - 2)), value);
  }

  __device__ void run() {
    const Half* end = run_tier(0, values);
    run_tier(1, second_values ? second_values : end);
  }

 private:
  /// Returns where the tier's values end.
  __device__ const Half* run_tier(int tier, const Half* first) {
    int begin = 0;  // of the bitmap's values
    const uint64_t below = (uint64_t{1} << (2 * lane)) - 1;
#pragma unroll
    for (int i = 0; i < kTierBitmaps; ++i) {
      const int tile = i / 4;
      const uint64_t bits = __ldg(bitmaps[tier] + i);
      const Half* next = first + begin + __popcll(bits & below);
      const uint32_t there = uint32_t(bits >> (2 * lane));
      const uint32_t stored =
          word[tier] >> (16 * (tile % 2) + 8 * (i % 4 / 2) + 4 * (tile / 2) + 2 * (i % 2));
      if (there & 1u) put(tier, __ldg(&next->bits));
      half[tier] += int(stored & 1u);
      if (there & 2u) put(tier, __ldg(&next[there & 1u].bits));
      half[tier] += int(stored >> 1 & 1u);
      begin += __popcll(bits);
    }
    return first + begin;
  }
};

/// One warp's share of a chunk. `record` is the chunk's, `rows` has its rows in shared memory.
__device__ void scatter_block(const TcaBmeView& w, const StripShape& shape, int64_t strip, int column,
                              const uint8_t* record, int block, int lane, const void* rows) {
  const auto* head = reinterpret_cast<const ChunkHead*>(record);
  const auto* masks = reinterpret_cast<const uint2*>(record + sizeof(ChunkHead)) + lane;
  const TierSource tiers[kStripTiers] = {{w, shape.tier_row(strip, 0), column},
                                         {w, shape.tier_row(strip, 1), column}};
  BlockScatter scatter{lane, tiers[0].values(w, lane), shape.paired ? tiers[1].values(w, lane) : nullptr};
  const int origin = int(head->first_row) % kPieceRows * 2;
#pragma unroll
  for (int t = 0; t < kStripTiers; ++t) {
    scatter.bitmaps[t] = tiers[t].bitmaps(w);
    const uint32_t start = head->start[lane][t];
    scatter.track[t] = ptx::shared_address(rows) + start_track(start) * sizeof(uint32_t);
    scatter.half[t] = int(start_position(start) / 16) - origin;
  }
  for (int i = 0; i < block; ++i) {
    const uint2 before = masks[i * kStripLanes];
    scatter.half[0] += __popc(before.x);
    scatter.half[1] += __popc(before.y);
  }
  const uint2 own = masks[block * kStripLanes];
  scatter.word[0] = own.x;
  scatter.word[1] = own.y;
  scatter.run();
}

constexpr uint32_t kVectorsPerRow = kTrackRowBytes / sizeof(uint4);

/// Or-es what is there into halves that may be another chunk's.
__device__ void add_halves(uint4* to, uint4 halves) {
  auto* words = reinterpret_cast<uint32_t*>(to);
  if (halves.x) atomicOr(words, halves.x);
  if (halves.y) atomicOr(words + 1, halves.y);
  if (halves.z) atomicOr(words + 2, halves.z);
  if (halves.w) atomicOr(words + 3, halves.w);
}

/// Writes all values over zeros. A thread block is a chunk of a strip; its shared memory holds the largest
/// chunk's rows.
__global__ void __launch_bounds__(kMaxChunkBlocks* kStripLanes)
    write_values(TcaBmeView w, StripShape shape, const uint8_t* records, const StripPlace* places,
                 uint8_t* values) {
  extern __shared__ uint4 assembled[];
  const int64_t strip = blockIdx.x / unsigned(shape.chunks);
  const int chunk = int(blockIdx.x % unsigned(shape.chunks));
  const int lane = int(threadIdx.x) % kStripLanes;
  // A shuffle, so that the compiler sees that a warp stays together.
  const int block = __shfl_sync(~0u, int(threadIdx.x) / kStripLanes, 0);
  records += strip * shape.record_bytes();
  const auto head_of = [&](int c) {
    return reinterpret_cast<const ChunkHead*>(records + shape.record_begin(c));
  };
  const uint32_t first_row = head_of(chunk)->first_row, count = head_of(chunk)->rows * kVectorsPerRow;
  // rows of no other chunk: ends and beginnings never go back from chunk to chunk
  const uint32_t own_begin = chunk > 0 ? head_of(chunk - 1)->first_row + head_of(chunk - 1)->rows : 0;
  const uint32_t own_end = chunk + 1 < shape.chunks ? head_of(chunk + 1)->first_row : ~0u;

  for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) assembled[i] = uint4{};
  __syncthreads();  // before values
  if (block < shape.chunk_blocks(chunk))
    scatter_block(w, shape, strip, shape.block_begin(chunk) + block, records + shape.record_begin(chunk),
                  block, lane, assembled);
  __syncthreads();  // all values are there
  auto* out = reinterpret_cast<uint4*>(values) + (int64_t(places[strip].row) + first_row) * kVectorsPerRow;
  for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
    const uint32_t row = first_row + i / kVectorsPerRow;
    if (row >= own_begin && row < own_end) {
      out[i] = assembled[i];
    } else {
      add_halves(out + i, assembled[i]);
    }
  }
}

/// A chunk that fits the ring fits the shared memory that every kernel has.
static_assert((kMaxChunkBlocks * 16 + kMaxLag / 2 + 2) * kTrackRowBytes <= 48 * 1024);

/// What the first two kernels have made, in the context's workspace: the layout's own memory is allocated in
/// one piece when its size is known, for an allocation takes as long as a kernel.
struct Records {
  size_t bytes = 0;  ///< of the records
  uint8_t* memory = nullptr;
  StripPlace* places = nullptr;  ///< right behind the records
  Totals totals{};
};

Records make_records(Context& context, const TcaBmeView& w, const StripShape& shape) {
  const size_t strips = size_t(shape.strips());
  Records out;
  out.bytes = strips * size_t(shape.record_bytes());
  const size_t place_bytes = strips * sizeof(StripPlace);
  out.memory = static_cast<uint8_t*>(context.workspace(out.bytes + place_bytes + sizeof(Totals)));
  out.places = reinterpret_cast<StripPlace*>(out.memory + out.bytes);
  auto* totals = reinterpret_cast<Totals*>(out.places + strips);
  const cudaStream_t stream = context.stream();
  SPINFER_CUDA_CHECK(cudaMemsetAsync(totals, 0, sizeof(Totals), stream));
  write_records<<<unsigned(strips), kStripLanes, 0, stream>>>(w, shape, out.memory, out.places, totals);
  SPINFER_LAUNCH_CHECK("strip stream records");
  place_strips<<<1, kPlaceThreads, 0, stream>>>(shape.strips(), out.places, totals);
  SPINFER_LAUNCH_CHECK("strip stream places");
  SPINFER_CUDA_CHECK(cudaMemcpyAsync(&out.totals, totals, sizeof(Totals), cudaMemcpyDeviceToHost, stream));
  SPINFER_CUDA_CHECK(cudaStreamSynchronize(stream));
  check(out.totals.rows < uint64_t{1} << 32, "strip streams of {}×{}: {} rows of values, the limit is 2^32",
        shape.m, shape.k, out.totals.rows);
  return out;
}

}  // namespace

StripStream make_strip_stream_on_device(Context& context, const TcaBmeView& w, bool paired) {
  return make_strip_stream_on_device(
      context, w, plan_strip_chunks(w.m, w.k, 1.0 - w.sparsity(), context.facts()), paired);
}

StripStream make_strip_stream_on_device(Context& context, const TcaBmeView& w, int chunks, bool paired) {
  StripShape shape{w.m, w.k, chunks, paired};
  check(!paired || StripShape::can_pair(w.m), "strip streams of {}×{}: its halves have no whole strips", w.m,
        w.k);
  check(chunks >= 1 && chunks <= shape.blocks() && shape.max_chunk_blocks() <= kMaxChunkBlocks,
        "strip streams of {}×{}: {} chunks are no legal cut", w.m, w.k, chunks);
  Records made = make_records(context, w, shape);
  while (made.totals.uneven > 0) {
    shape.chunks = refine_strip_chunks(shape);
    made = make_records(context, w, shape);
  }
  const size_t place_bytes = size_t(shape.strips()) * sizeof(StripPlace);
  const size_t value_bytes = size_t(made.totals.rows + kSlackRows) * kTrackRowBytes;
  const size_t run_bytes = run_start_bytes(shape, context.facts());
  const auto memory = context.allocate_shared(value_bytes + run_bytes + made.bytes + place_bytes);
  auto* values = static_cast<uint8_t*>(memory.get());
  auto* runs = reinterpret_cast<RunStart*>(values + value_bytes);
  uint8_t* records = values + value_bytes + run_bytes;
  auto* places = reinterpret_cast<StripPlace*>(records + made.bytes);
  const cudaStream_t stream = context.stream();
  SPINFER_CUDA_CHECK(cudaMemsetAsync(values, 0, value_bytes, stream));
  SPINFER_CUDA_CHECK(
      cudaMemcpyAsync(records, made.memory, made.bytes + place_bytes, cudaMemcpyDeviceToDevice, stream));
  write_values<<<unsigned(shape.strips() * shape.chunks), unsigned(shape.max_chunk_blocks() * kStripLanes),
                 size_t(made.totals.max_chunk_rows) * kTrackRowBytes, stream>>>(w, shape, records, places,
                                                                                values);
  SPINFER_LAUNCH_CHECK("strip stream values");

  StripStream out;
  out.view.shape = shape;
  out.view.records = records;
  out.view.places = places;
  out.view.values = values;
  out.view.rows = int64_t(made.totals.rows);
  out.view.max_chunk_rows = made.totals.max_chunk_rows;
  find_run_starts(context, out.view, runs);
  SPINFER_CUDA_CHECK(cudaStreamSynchronize(stream));
  out.runs = runs;
  out.device_bytes = out.view.bytes() + int64_t(run_bytes);
  out.storage = {memory};
  return out;
}

}  // namespace spinfer::cuda
