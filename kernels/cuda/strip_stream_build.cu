// Makes strip streams (kernels/format/strip_stream.h) from canonical TCA-BME arrays, on the GPU, once per
// weight.
//
// A warp walks a strip, lane = lane of the stream, chunk after chunk, for each chunk deals lanes to tracks
// from where the one before ended. Twice: to find how many rows each strip has, and, when a scan has turned
// those into places, to write. Bitmaps are read as broadcasts, values gathered. Bound by latency: a strip is
// a chain.
#include <cub/device/device_scan.cuh>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/spmm.h"

namespace spinfer::cuda {
namespace {

constexpr int kThreads = 64;

struct Totals {
  int max_chunk_rows;
  int uneven;  ///< chunks that do not fit the ring
};

/// The strip's 16 bitmaps of a block.
__device__ const uint64_t* bitmaps_of(const TcaBmeView& w, int64_t strip, int block) {
  return w.bitmaps + (strip / 4 * group_tiles(w.k) + block) * kBitmapsPerGroupTile + strip % 4 * 16;
}

/// Where a lane's stream goes on, and where the track of its own number ended.
struct Deal {
  int track, half;
  int lane_of_track;
};

/// Pieces from this position on, and through what a block that ends there needs (strip_stream.cpp).
__device__ int first_piece(int half) {
  return __reduce_min_sync(~0u, half) / (2 * kPieceRows);
}
__device__ int pieces_until(int half) {
  return (__reduce_max_sync(~0u, half) / 2 + 1) / kPieceRows + 1;
}

/// `length` and `first` (mask of the first block) are the lane's, `track_end` the track's.
__device__ Deal deal_lanes(int length, uint32_t first, int track_end, int lane) {
  int by_length = 0, by_end = 0;  // ranks
  for (int i = 0; i < kStripLanes; ++i) {
    const int other = __shfl_sync(~0u, length, i), end = __shfl_sync(~0u, track_end, i);
    by_length += other > length || (other == length && i < lane);
    by_end += end < track_end || (end == track_end && i < lane);
  }
  Deal deal{};
  for (int i = 0; i < kStripLanes; ++i) {
    if (__shfl_sync(~0u, by_end, i) == by_length) deal.track = i;
    if (__shfl_sync(~0u, by_length, i) == by_end) deal.lane_of_track = i;
  }
  const int lowest = __reduce_max_sync(~0u, track_end) - kMaxLag;
  deal.half = max(__shfl_sync(~0u, track_end, deal.track), lowest);
  if ((first & 15u) == 15u) deal.half += deal.half & 1;
  return deal;
}

/// One strip on its way through a warp. Counts are the same in all lanes.
template <bool kWrite>
struct StripWalk {
  const TcaBmeView& w;
  const StripShape& shape;
  int64_t strip;
  int lane;
  uint8_t* record;  ///< the next chunk's
  uint8_t* rows;    ///< the strip's
  int arrived = 0, strip_rows = 0, max_chunk_rows = 0;
  bool fits = true;

  __device__ uint32_t mask(int block) const { return lane_mask(bitmaps_of(w, strip, block), lane); }

  __device__ Deal deal(int chunk, int track_end) const {
    int length = 0;
    for (int block = shape.block_begin(chunk); block < shape.block_begin(chunk + 1); ++block)
      length += __popc(mask(block));
    return deal_lanes(length, mask(shape.block_begin(chunk)), track_end, lane);
  }

  __device__ void walk() {
    Deal current = deal(0, 0);
    for (int chunk = 0; chunk < shape.chunks; ++chunk) {
      const int begin = shape.block_begin(chunk), blocks = shape.block_begin(chunk + 1) - begin;
      int half = current.half, used = first_piece(half);
      const int first_row = __reduce_min_sync(~0u, half) / 2;
      ChunkHead* head = reinterpret_cast<ChunkHead*>(record);
      if (kWrite) {
        head->start[lane] = uint16_t(chunk_start(current.track, half - used * 2 * kPieceRows));
        if (lane < kMaxChunkBlocks) head->events[lane] = 0;
      }
      const int arrived_before = arrived - used;
      int first_wait = 0;
      uint64_t events = 0;
      uint32_t next = mask(begin);
      for (int i = 0; i < blocks; ++i) {
        const uint32_t natural = next;
        next = i + 1 < blocks ? mask(begin + i + 1) : 0u;
        const uint32_t padded = mask_with_zeros(half, natural, next);
        if (kWrite) {
          reinterpret_cast<uint32_t*>(record + sizeof(ChunkHead) + i * kTrackRowBytes)[lane] =
              arrange_mask(padded);
          write_block(begin + i, current.track, half, padded);
        }
        half += __popc(padded);
        const int needed = max(arrived, pieces_until(half));
        if (i == 0) {
          first_wait = needed - arrived;
        } else {
          events |= uint64_t(uint32_t(needed - arrived) & 15u) << (8 * (i - 1));
        }
        arrived = needed;
        fits = fits && arrived - used <= kRingPieces;
        if (i + 1 < blocks) {
          events |= uint64_t(uint32_t(first_piece(half) - used) & 15u) << (8 * i + 4);
          used = first_piece(half);
        }
      }
      const int end = (__reduce_max_sync(~0u, half) + 1) / 2;
      strip_rows = max(strip_rows, end);
      max_chunk_rows = max(max_chunk_rows, end - first_row);
      int used_after = arrived;
      if (chunk + 1 < shape.chunks) {
        current = deal(chunk + 1, __shfl_sync(~0u, half, current.lane_of_track));
        used_after = first_piece(current.half);
      }
      events |= uint64_t(uint32_t(min(used_after - used, 15))) << (8 * (blocks - 1) + 4);
      if (kWrite && lane == 0) {
        head->first_row = uint32_t(first_row);
        head->rows = uint16_t(end - first_row);
        head->blocks = uint8_t(blocks);
        head->waits = uint8_t(first_wait | arrived_before << 4);
        *reinterpret_cast<uint64_t*>(head->events) = events;
      }
      record += sizeof(ChunkHead) + blocks * kTrackRowBytes;
    }
  }

  /// This lane's values of one block to its track; explicit zeros are there already.
  __device__ void write_block(int block, int track, int half, uint32_t padded) {
    const uint64_t* bitmaps = bitmaps_of(w, strip, block);
    const int above = int(strip % 4) * 16;  // bitmaps of the strips above in the GroupTile
    int before = 0;
    for (int i = lane; i < above; i += kStripLanes) before += __popcll(bitmaps[i - above]);
    int64_t value = w.offset(strip / 4 * group_tiles(w.k) + block) + int64_t(__reduce_add_sync(~0u, before));
    auto* halves = reinterpret_cast<uint16_t*>(rows + track * 4);
    for (int i = 0; i < 16; ++i) {
      const uint64_t bitmap = bitmaps[i], below = (uint64_t{1} << (2 * lane)) - 1;
      const Half* next = w.values + value + __popcll(bitmap & below);
      for (int bit = 0; bit < 2; ++bit) {
        const bool there = bitmap >> (2 * lane + bit) & 1;
        if (there) halves[int64_t(half / 2) * (kTrackRowBytes / 2) + half % 2] = (next++)->bits;
        half += int(padded >> (2 * i + bit) & 1u);
      }
      value += __popcll(bitmap);
    }
  }
};

/// Which strip this warp has, or none.
__device__ int64_t strip_of_warp() {
  return (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kStripLanes;
}

__global__ void __launch_bounds__(kThreads)
    measure(TcaBmeView w, StripShape shape, StripPlace* places, uint64_t* rows, Totals* totals) {
  const int64_t strip = strip_of_warp();
  if (strip >= shape.strips()) return;
  StripWalk<false> walk{w, shape, strip, int(threadIdx.x) % kStripLanes, nullptr, nullptr};
  walk.walk();
  if (walk.lane != 0) return;
  places[strip].pieces = uint32_t(walk.arrived);
  rows[strip] = uint64_t(walk.strip_rows);
  atomicMax(&totals->max_chunk_rows, walk.max_chunk_rows);
  if (!walk.fits) atomicAdd(&totals->uneven, 1);
}

__global__ void __launch_bounds__(kThreads)
    write(TcaBmeView w, StripShape shape, StripPlace* places, const uint64_t* row_begins, uint8_t* records,
          uint8_t* values) {
  const int64_t strip = strip_of_warp();
  if (strip >= shape.strips()) return;
  const int lane = int(threadIdx.x) % kStripLanes;
  if (lane == 0) places[strip].row = uint32_t(row_begins[strip]);
  StripWalk<true> walk{w,
                       shape,
                       strip,
                       lane,
                       records + strip * shape.record_bytes(),
                       values + row_begins[strip] * kTrackRowBytes};
  walk.walk();
}

struct Measured {
  std::shared_ptr<void> places, row_begins;
  uint64_t rows = 0;
  Totals totals{};
};

unsigned grid_of(const StripShape& shape) {
  return unsigned((shape.strips() * kStripLanes + kThreads - 1) / kThreads);
}

Measured measure_on_device(Context& context, const TcaBmeView& w, const StripShape& shape) {
  const size_t strips = size_t(shape.strips());
  Measured out;
  out.places = context.allocate_shared(strips * sizeof(StripPlace));
  out.row_begins = context.allocate_shared((strips + 1) * sizeof(uint64_t));
  auto* rows = static_cast<uint64_t*>(out.row_begins.get());
  const auto totals = context.allocate_shared(sizeof(Totals));
  const cudaStream_t stream = context.stream();
  SPINFER_CUDA_CHECK(cudaMemsetAsync(totals.get(), 0, sizeof(Totals), stream));
  SPINFER_CUDA_CHECK(cudaMemsetAsync(rows + strips, 0, sizeof(uint64_t), stream));
  measure<<<grid_of(shape), kThreads, 0, stream>>>(w, shape, static_cast<StripPlace*>(out.places.get()), rows,
                                                   static_cast<Totals*>(totals.get()));
  SPINFER_LAUNCH_CHECK("strip stream measure");
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
  Measured measured = measure_on_device(context, w, shape);
  while (measured.totals.uneven > 0) {
    shape.chunks = refine_strip_chunks(shape);
    measured = measure_on_device(context, w, shape);
  }
  const size_t strips = size_t(shape.strips());
  const size_t ticket_bytes = strips * sizeof(uint32_t);
  const size_t value_bytes = size_t(measured.rows + kPieceRows + 1) * kTrackRowBytes;
  const auto records = context.allocate_shared(strips * size_t(shape.record_bytes()));
  const auto values = context.allocate_shared(value_bytes);
  const auto tickets = context.allocate_shared(ticket_bytes);
  SPINFER_CUDA_CHECK(cudaMemsetAsync(tickets.get(), 0, ticket_bytes, context.stream()));
  SPINFER_CUDA_CHECK(cudaMemsetAsync(values.get(), 0, value_bytes, context.stream()));
  write<<<grid_of(shape), kThreads, 0, context.stream()>>>(
      w, shape, static_cast<StripPlace*>(measured.places.get()),
      static_cast<const uint64_t*>(measured.row_begins.get()), static_cast<uint8_t*>(records.get()),
      static_cast<uint8_t*>(values.get()));
  SPINFER_LAUNCH_CHECK("strip stream write");
  SPINFER_CUDA_CHECK(cudaStreamSynchronize(context.stream()));

  StripStream out;
  out.view.shape = shape;
  out.view.records = static_cast<const uint8_t*>(records.get());
  out.view.places = static_cast<const StripPlace*>(measured.places.get());
  out.view.values = static_cast<const uint8_t*>(values.get());
  out.view.rows = int64_t(measured.rows);
  out.view.max_chunk_rows = measured.totals.max_chunk_rows;
  out.tickets = static_cast<uint32_t*>(tickets.get());
  out.device_bytes = out.view.bytes() + int64_t(ticket_bytes);
  out.storage = {records, values, measured.places, tickets};
  return out;
}

}  // namespace spinfer::cuda
