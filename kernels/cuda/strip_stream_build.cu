// Makes strip streams (kernels/format/strip_stream.h) from canonical TCA-BME arrays, on the GPU, once per
// weight.
//
// records  A warp a strip, lane = lane of its two streams. It reads bitmaps only, walks chunk after chunk,
// deals
//          streams to tracks from where the chunk before ended, and writes the records. A chain, but a short
//          one.
// values   A scan has turned the strips' rows into places. A warp a block of a chunk: its values are one run
//          of the canonical array, the record says where each lane's begin. Level tracks make the stores of a
//          warp fall into few rows. Explicit zeros and holes are there already.
#include <cub/device/device_scan.cuh>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/spmm.h"

namespace spinfer::cuda {
namespace {

constexpr int kStripsPerGroupTile = kGroupTile / kStripRows;
constexpr int kBitmapsPerBlock = kBitmapsPerGroupTile / kStripsPerGroupTile;
static_assert(kBitmapsPerBlock == kStripLanes && kStripsPerGroupTile == 2, "a lane reads one bitmap");

struct Totals {
  int max_chunk_rows;
  int uneven;  ///< strips with chunks that do not fit the ring
};

/// Which GroupTile has the strip's block, and the strip's bitmaps of it.
__device__ int64_t group_of(const TcaBmeView& w, int64_t strip, int block) {
  return strip / kStripsPerGroupTile * group_tiles(w.k) + block;
}
__device__ const uint64_t* bitmaps_of(const TcaBmeView& w, int64_t strip, int block) {
  return w.bitmaps + group_of(w, strip, block) * kBitmapsPerGroupTile +
         strip % kStripsPerGroupTile * kBitmapsPerBlock;
}

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

/// What a warp keeps of its strip.
struct SharedStrip {
  uint64_t masks[kMaxChunkBlocks][kStripLanes];  ///< lane_masks of a chunk
  int track[kStripTracks];                       ///< by rank, in each 32 tracks
  int end[kStripTracks];                         ///< by rank, then by track
};

/// One strip on its way through a warp. What is no array is the same in all lanes.
struct StripWalk {
  const TcaBmeView& w;
  const StripShape& shape;
  SharedStrip& shared;
  int64_t strip;
  int lane;
  uint8_t* record;  ///< the next chunk's
  int arrived = 0, strip_rows = 0, max_chunk_rows = 0;
  bool fits = true;
  /// Of the lane's streams, tier by tier.
  int track[kStripTiers], half[kStripTiers];

  __device__ void read_masks(int chunk) {
    const int begin = shape.block_begin(chunk), blocks = shape.chunk_blocks(chunk);
    uint64_t bitmaps[kMaxChunkBlocks];
#pragma unroll
    for (int i = 0; i < kMaxChunkBlocks; ++i)
      bitmaps[i] = i < blocks ? bitmaps_of(w, strip, begin + i)[lane] : 0;
#pragma unroll
    for (int i = 0; i < kMaxChunkBlocks; ++i) shared.masks[i][lane] = lane_masks(bitmaps[i], lane);
  }

  __device__ uint32_t mask(int block, int tier) const {
    return uint32_t(shared.masks[block][lane] >> (32 * tier));
  }

  /// Deals the streams of the chunk whose masks were read. `end` is where tracks `lane` and 32 + `lane`
  /// ended.
  __device__ void deal(const int (&end)[kStripTiers]) {
    int length[kStripTiers] = {}, by_length[kStripTiers] = {}, by_end[kStripTiers] = {};
    for (int i = 0; i < kMaxChunkBlocks; ++i) {
      length[0] += __popc(mask(i, 0));
      length[1] += __popc(mask(i, 1));
    }
    for (int i = 0; i < kStripLanes; ++i) {
#pragma unroll
      for (int t = 0; t < kStripTiers; ++t) {
        const int other_length = __shfl_sync(~0u, length[t], i), other_end = __shfl_sync(~0u, end[t], i);
        by_length[t] += other_length > length[t] || (other_length == length[t] && i < lane);
        by_end[t] += other_end < end[t] || (other_end == end[t] && i < lane);
      }
    }
#pragma unroll
    for (int t = 0; t < kStripTiers; ++t) {
      shared.track[t * kStripLanes + by_end[t]] = t * kStripLanes + lane;
      shared.end[t * kStripLanes + by_end[t]] = end[t];
    }
    __syncwarp();
    const bool first_is_ahead = __reduce_add_sync(~0u, end[0] - end[1]) > 0;
    const bool second_is_longer = __reduce_add_sync(~0u, length[1] - length[0]) > 0;
    const int lowest = highest_of(end) - kMaxLag;
#pragma unroll
    for (int t = 0; t < kStripTiers; ++t) {
      const int rank = (t ^ int(first_is_ahead != second_is_longer)) * kStripLanes + by_length[t];
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
      const uint32_t padded =
          mask_with_zeros(half[t], mask(block, t), block + 1 < blocks ? mask(block + 1, t) : 0u);
      half[t] += __popc(padded);
      words[t] = arrange_mask(padded);
    }
    reinterpret_cast<uint2*>(record + sizeof(ChunkHead) + block * kMaskRowBytes)[lane] =
        make_uint2(words[0], words[1]);
  }

  __device__ void walk() {
    read_masks(0);
    deal({0, 0});
    for (int chunk = 0; chunk < shape.chunks; ++chunk) walk_chunk(chunk);
  }

  /// Writes a chunk's record and deals the next one.
  __device__ void walk_chunk(int chunk) {
    const int blocks = shape.chunk_blocks(chunk), first_row = lowest_of(half) / 2;
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
    if (chunk + 1 < shape.chunks) {
      shared.end[track[0]] = half[0];
      shared.end[track[1]] = half[1];
      __syncwarp();
      const int track_end[kStripTiers] = {shared.end[lane], shared.end[kStripLanes + lane]};
      __syncwarp();
      read_masks(chunk + 1);
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

/// Writes all records, `places[].pieces` and how many rows each strip has. A thread block is a warp.
__global__ void __launch_bounds__(kStripLanes)
    write_records(TcaBmeView w, StripShape shape, uint8_t* records, StripPlace* places, uint64_t* rows,
                  Totals* totals) {
  __shared__ SharedStrip shared;
  const int64_t strip = blockIdx.x;
  StripWalk walk{w, shape, shared, strip, int(threadIdx.x), records + strip * shape.record_bytes()};
  walk.walk();
  if (walk.lane != 0) return;
  places[strip].pieces = uint32_t(walk.arrived);
  rows[strip] = uint64_t(walk.strip_rows);
  atomicMax(&totals->max_chunk_rows, walk.max_chunk_rows);
  if (!walk.fits) atomicAdd(&totals->uneven, 1);
}

/// A block's values on their way from the canonical array to the tracks.
struct BlockScatter {
  const Half* values;  ///< the strip's first of this block
  uint64_t bitmap;     ///< the strip's bitmap `lane` of this block
  uint16_t* rows;      ///< the chunk's first piece
  int lane;
  int track[kStripTiers], half[kStripTiers];  ///< half from the chunk's first piece on
  uint32_t word[kStripTiers];                 ///< masks as stored

  __device__ void put(int tier, const Half* value) {
    const uint16_t bits = __ldg(&value->bits);  // so that loads may overtake stores
    rows[half[tier] / 2 * (kTrackRowBytes / 2) + track[tier] * 2 + half[tier] % 2] = bits;
  }

  __device__ void run() {
    const int count = __popcll(bitmap);
    int through = count;  // values up to and with this lane's bitmap
#pragma unroll
    for (int step = 1; step < kStripLanes; step *= 2) {
      const int other = __shfl_up_sync(~0u, through, step);
      through += lane >= step ? other : 0;
    }
    const int begin = through - count;
    const uint64_t below = (uint64_t{1} << (2 * lane)) - 1;
#pragma unroll
    for (int i = 0; i < kBitmapsPerBlock; ++i) {
      const int tier = i / 16, tile = i % 16 / 4;
      const uint64_t bits = __shfl_sync(~0u, bitmap, i);
      const Half* next = values + __shfl_sync(~0u, begin, i) + __popcll(bits & below);
      const uint32_t there = uint32_t(bits >> (2 * lane)) & 3u;
      const uint32_t stored = word[tier] >> (16 * (tile % 2) + 4 * (i % 4) + 2 * (tile / 2)) & 3u;
      if (there & 1u) put(tier, next);
      half[tier] += int(stored & 1u);
      if (there & 2u) put(tier, next + (there & 1u));
      half[tier] += int(stored >> 1);
    }
  }
};

/// Writes all values and `places[].row`. A thread block is a chunk of a strip.
__global__ void __launch_bounds__(kMaxChunkBlocks* kStripLanes)
    write_values(TcaBmeView w, StripShape shape, const uint8_t* records, const uint64_t* row_begins,
                 StripPlace* places, uint8_t* values) {
  const int64_t strip = blockIdx.x / unsigned(shape.chunks);
  const int chunk = int(blockIdx.x % unsigned(shape.chunks));
  const int lane = int(threadIdx.x) % kStripLanes, block = int(threadIdx.x) / kStripLanes;
  if (chunk == 0 && threadIdx.x == 0) places[strip].row = uint32_t(row_begins[strip]);
  if (block >= shape.chunk_blocks(chunk)) return;

  const uint8_t* record = records + strip * shape.record_bytes() + shape.record_begin(chunk);
  const auto* head = reinterpret_cast<const ChunkHead*>(record);
  const auto* masks = reinterpret_cast<const uint2*>(record + sizeof(ChunkHead)) + lane;
  const uint64_t* bitmaps = bitmaps_of(w, strip, shape.block_begin(chunk) + block);
  const int64_t group = group_of(w, strip, shape.block_begin(chunk) + block);
  int above = 0;  // values of the strip above in the GroupTile
  if (strip % kStripsPerGroupTile)
    above = __reduce_add_sync(~0u, __popcll((bitmaps - kBitmapsPerBlock)[lane]));

  BlockScatter block_scatter{};
  block_scatter.values = w.values + w.offset(group) + above;
  block_scatter.bitmap = bitmaps[lane];
  const int64_t row = int64_t(row_begins[strip]) + head->first_row / kPieceRows * kPieceRows;
  block_scatter.rows = reinterpret_cast<uint16_t*>(values + row * kTrackRowBytes);
  block_scatter.lane = lane;
#pragma unroll
  for (int t = 0; t < kStripTiers; ++t) {
    const uint32_t start = head->start[lane][t];
    block_scatter.track[t] = start_track(start);
    block_scatter.half[t] = int(start_position(start) / 16);
  }
  for (int i = 0; i < block; ++i) {
    const uint2 before = masks[i * kStripLanes];
    block_scatter.half[0] += __popc(before.x);
    block_scatter.half[1] += __popc(before.y);
  }
  const uint2 own = masks[block * kStripLanes];
  block_scatter.word[0] = own.x;
  block_scatter.word[1] = own.y;
  block_scatter.run();
}

/// What `write_records` has made.
struct Records {
  std::shared_ptr<void> memory, places, row_begins;
  uint64_t rows = 0;
  Totals totals{};
};

Records make_records(Context& context, const TcaBmeView& w, const StripShape& shape) {
  const size_t strips = size_t(shape.strips());
  Records out;
  out.memory = context.allocate_shared(strips * size_t(shape.record_bytes()));
  out.places = context.allocate_shared(strips * sizeof(StripPlace));
  out.row_begins = context.allocate_shared((strips + 1) * sizeof(uint64_t));
  auto* rows = static_cast<uint64_t*>(out.row_begins.get());
  const auto totals = context.allocate_shared(sizeof(Totals));
  const cudaStream_t stream = context.stream();
  SPINFER_CUDA_CHECK(cudaMemsetAsync(totals.get(), 0, sizeof(Totals), stream));
  SPINFER_CUDA_CHECK(cudaMemsetAsync(rows + strips, 0, sizeof(uint64_t), stream));
  write_records<<<unsigned(strips), kStripLanes, 0, stream>>>(
      w, shape, static_cast<uint8_t*>(out.memory.get()), static_cast<StripPlace*>(out.places.get()), rows,
      static_cast<Totals*>(totals.get()));
  SPINFER_LAUNCH_CHECK("strip stream records");
  size_t scan_bytes = 0;
  SPINFER_CUDA_CHECK(cub::DeviceScan::ExclusiveSum(nullptr, scan_bytes, rows, int64_t(strips + 1), stream));
  const auto scan = context.allocate_shared(scan_bytes);
  SPINFER_CUDA_CHECK(
      cub::DeviceScan::ExclusiveSum(scan.get(), scan_bytes, rows, int64_t(strips + 1), stream));
  SPINFER_CUDA_CHECK(
      cudaMemcpyAsync(&out.totals, totals.get(), sizeof(Totals), cudaMemcpyDeviceToHost, stream));
  SPINFER_CUDA_CHECK(
      cudaMemcpyAsync(&out.rows, rows + strips, sizeof(uint64_t), cudaMemcpyDeviceToHost, stream));
  SPINFER_CUDA_CHECK(cudaStreamSynchronize(stream));
  check(out.rows < uint64_t{1} << 32, "strip streams of {}×{}: {} rows of values, the limit is 2^32", shape.m,
        shape.k, out.rows);
  return out;
}

}  // namespace

StripStream make_strip_stream_on_device(Context& context, const TcaBmeView& w) {
  return make_strip_stream_on_device(context, w,
                                     plan_strip_chunks(w.m, w.k, 1.0 - w.sparsity(), context.facts()));
}

StripStream make_strip_stream_on_device(Context& context, const TcaBmeView& w, int chunks) {
  StripShape shape{w.m, w.k, chunks};
  check(chunks >= 1 && chunks <= shape.blocks() && shape.max_chunk_blocks() <= kMaxChunkBlocks,
        "strip streams of {}×{}: {} chunks are no legal cut", w.m, w.k, chunks);
  Records records = make_records(context, w, shape);
  while (records.totals.uneven > 0) {
    shape.chunks = refine_strip_chunks(shape);
    records = {};
    records = make_records(context, w, shape);
  }
  const size_t strips = size_t(shape.strips());
  const size_t value_bytes = size_t(records.rows + kPieceRows + 1) * kTrackRowBytes;
  const auto values = context.allocate_shared(value_bytes);
  SPINFER_CUDA_CHECK(cudaMemsetAsync(values.get(), 0, value_bytes, context.stream()));
  write_values<<<unsigned(strips) * unsigned(shape.chunks), unsigned(shape.max_chunk_blocks() * kStripLanes),
                 0, context.stream()>>>(w, shape, static_cast<const uint8_t*>(records.memory.get()),
                                        static_cast<const uint64_t*>(records.row_begins.get()),
                                        static_cast<StripPlace*>(records.places.get()),
                                        static_cast<uint8_t*>(values.get()));
  SPINFER_LAUNCH_CHECK("strip stream values");
  SPINFER_CUDA_CHECK(cudaStreamSynchronize(context.stream()));

  StripStream out;
  out.view.shape = shape;
  out.view.records = static_cast<const uint8_t*>(records.memory.get());
  out.view.places = static_cast<const StripPlace*>(records.places.get());
  out.view.values = static_cast<const uint8_t*>(values.get());
  out.view.rows = int64_t(records.rows);
  out.view.max_chunk_rows = records.totals.max_chunk_rows;
  out.device_bytes = out.view.bytes();
  out.storage = {records.memory, values, records.places};
  return out;
}

}  // namespace spinfer::cuda
