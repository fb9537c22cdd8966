// Makes strip streams (kernels/format/strip_stream.h) from canonical TCA-BME arrays, on the GPU, once per
// weight.
//
// Three steps: `measure` finds the heights and bytes of every chunk, a scan turns bytes into offsets, `write`
// moves the bits. One warp per chunk in both, lane = lane of the stream; a warp reads the 16 bitmaps of its
// strip in each GroupTile as broadcasts and walks the lane's nibbles, values are gathered. Bound by the
// gathers' and stores' sectors.
#include <cub/device/device_scan.cuh>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/spmm.h"

namespace spinfer::cuda {
namespace {

constexpr int kThreads = 256;

struct Totals {
  int max_height;
  int max_unfolded_bytes;
};

/// A warp's chunk: strip, blocks, lane.
struct ChunkOf {
  int64_t entry, strip;
  int begin, end, lane;
  __device__ explicit ChunkOf(const StripShape& shape) {
    entry = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / 32;
    lane = int(threadIdx.x) % 32;
    strip = entry / shape.chunks;
    const int chunk = int(entry % shape.chunks);
    begin = shape.block_begin(chunk);
    end = shape.block_begin(chunk + 1);
  }
  /// The strip's 16 bitmaps of a block.
  __device__ const uint64_t* bitmaps(const TcaBmeView& w, int block) const {
    return w.bitmaps + (strip / 4 * group_tiles(w.k) + block) * kBitmapsPerGroupTile + strip % 4 * 16;
  }
};

/// Lanes with more words, or as many and a lower number.
__device__ int rank_of(int words, int lane) {
  int rank = 0;
  for (int i = 0; i < 32; ++i) {
    const int other = __shfl_sync(~0u, words, i);
    rank += other > words || (other == words && i < lane);
  }
  return rank;
}

/// Words of this lane's stream.
__device__ int stream_words(const TcaBmeView& w, const ChunkOf& c) {
  int position = 0;
  for (int block = c.begin; block < c.end; ++block) {
    position = advance_stream(position, lane_mask(c.bitmaps(w, block), c.lane));
  }
  return (position + 1) / 2;
}

__global__ void __launch_bounds__(kThreads)
    measure(TcaBmeView w, StripShape shape, ChunkHeights* heights, uint64_t* bytes, Totals* totals) {
  const ChunkOf c(shape);
  if (c.entry >= shape.entries()) return;
  const int words = stream_words(w, c);
  const int rank = rank_of(words, c.lane);
  if (rank % 2 == 0) heights[c.entry].row[rank / 2] = uint8_t(words);
  __syncwarp();
  if (c.lane == 0) {
    const ChunkHeights height = heights[c.entry];
    bytes[c.entry] = uint64_t(chunk_bytes(c.end - c.begin, height));
    atomicMax(&totals->max_height, int(height.row[0]));
    atomicMax(&totals->max_unfolded_bytes, unfolded_chunk_bytes(c.end - c.begin, height.row[0]));
  }
}

/// Puts halves into one lane's column, word by word.
struct StreamWriter {
  uint8_t* rows;    // row 0, at the lane's column
  uint8_t* column;  // the lane's place in the columns above the whole rows, as if they began at row 0
  int whole_rows;
  uint32_t pending = 0;
  int position = 0;

  __device__ void put_word(int row, uint32_t word) {
    auto* to = row < whole_rows ? rows + int64_t(row) * kChunkRowBytes : column + int64_t(row) * 8;
    *reinterpret_cast<uint32_t*>(to) = word;
  }
  __device__ void put(uint32_t half) {
    if (position % 2) {
      put_word(position / 2, pending | half << 16);
      pending = 0;
    } else {
      pending = half;
    }
    ++position;
  }
  __device__ void finish(int height) {
    if (position % 2) put(0);
    for (int row = position / 2; row < height; ++row) put_word(row, 0);
  }
};

/// This lane's values of one block, in stream order.
__device__ void write_block(const TcaBmeView& w, const ChunkOf& c, int block, StreamWriter& stream) {
  const uint64_t* bitmaps = c.bitmaps(w, block);
  const int before = int(c.strip % 4) * 16;  // bitmaps of the strips above in the GroupTile
  const int64_t tile = c.strip / 4 * group_tiles(w.k) + block;
  int64_t value = w.offset(tile);
  for (int i = 0; i < before; ++i) value += __popcll(bitmaps[i - before]);
  const uint32_t mask = lane_mask(bitmaps, c.lane);
  for (int i = 0; i < 16; ++i) {
    if (i % 2 == 0 && (mask >> (2 * i) & 15u) == 15u && stream.position % 2) stream.put(0);
    const uint64_t below = (uint64_t{1} << (2 * c.lane)) - 1;
    const Half* next = w.values + value + __popcll(bitmaps[i] & below);
    for (int bit = 2 * i; bit < 2 * i + 2; ++bit) {
      if (mask >> bit & 1) stream.put((next++)->bits);
    }
    value += __popcll(bitmaps[i]);
  }
}

__global__ void __launch_bounds__(kThreads)
    write(TcaBmeView w, StripShape shape, const ChunkHeights* heights, const uint64_t* byte_offsets,
          uint32_t* offsets, uint8_t* data) {
  const ChunkOf c(shape);
  if (c.entry >= shape.entries()) return;
  const int blocks = c.end - c.begin;
  const int rank = rank_of(stream_words(w, c), c.lane);
  const ChunkHeights height = heights[c.entry];
  uint8_t* chunk = data + byte_offsets[c.entry];
  if (c.lane == 0) offsets[c.entry] = uint32_t(byte_offsets[c.entry] / kChunkAlign);

  chunk[c.lane] = uint8_t(rank);
  auto* masks = reinterpret_cast<uint32_t*>(chunk + kChunkRankBytes) + c.lane;
  for (int block = c.begin; block < c.end; ++block) {
    masks[(block - c.begin) * kStripLanes] = lane_mask(c.bitmaps(w, block), c.lane);
  }
  const int whole = height.row[kStripPairs - 1];
  uint8_t* rows = chunk + kChunkRankBytes + blocks * kChunkRowBytes;
  int64_t pairs = 0,
          pairs_before = 0;  // 8-byte pieces above the whole rows: all, and of the columns before ours
  for (int q = 0; q < kStripPairs; ++q) {
    if (q == rank / 2) pairs_before = pairs;
    pairs += height.row[q] - whole;
  }
  uint8_t* columns = rows + whole * kChunkRowBytes;
  StreamWriter stream{rows + rank * 4, columns + (pairs_before - whole) * 8 + rank % 2 * 4, whole};
  for (int block = c.begin; block < c.end; ++block) write_block(w, c, block, stream);
  stream.finish(height.row[rank / 2]);
  if (pairs % 2 && c.lane < 2) reinterpret_cast<uint32_t*>(columns + pairs * 8)[c.lane] = 0;  // to 16 bytes
}

struct Measured {
  std::shared_ptr<void> heights, byte_offsets;
  uint64_t data_bytes = 0;
  Totals totals{};
};

Measured measure_on_device(Context& context, const TcaBmeView& w, const StripShape& shape) {
  const size_t entries = size_t(shape.entries());
  Measured out;
  out.heights = context.allocate_shared(entries * sizeof(ChunkHeights));
  out.byte_offsets = context.allocate_shared((entries + 1) * sizeof(uint64_t));
  auto* offsets = static_cast<uint64_t*>(out.byte_offsets.get());
  const auto totals = context.allocate_shared(sizeof(Totals));
  const cudaStream_t stream = context.stream();
  SPINFER_CUDA_CHECK(cudaMemsetAsync(totals.get(), 0, sizeof(Totals), stream));
  SPINFER_CUDA_CHECK(cudaMemsetAsync(offsets + entries, 0, sizeof(uint64_t), stream));
  const auto grid = unsigned((entries * 32 + kThreads - 1) / kThreads);
  measure<<<grid, kThreads, 0, stream>>>(w, shape, static_cast<ChunkHeights*>(out.heights.get()), offsets,
                                         static_cast<Totals*>(totals.get()));
  SPINFER_LAUNCH_CHECK("strip stream measure");
  size_t scan_bytes = 0;
  SPINFER_CUDA_CHECK(
      cub::DeviceScan::ExclusiveSum(nullptr, scan_bytes, offsets, int64_t(entries + 1), stream));
  const auto scan = context.allocate_shared(scan_bytes);
  SPINFER_CUDA_CHECK(
      cub::DeviceScan::ExclusiveSum(scan.get(), scan_bytes, offsets, int64_t(entries + 1), stream));
  SPINFER_CUDA_CHECK(
      cudaMemcpyAsync(&out.totals, totals.get(), sizeof(Totals), cudaMemcpyDeviceToHost, stream));
  SPINFER_CUDA_CHECK(
      cudaMemcpyAsync(&out.data_bytes, offsets + entries, sizeof(uint64_t), cudaMemcpyDeviceToHost, stream));
  SPINFER_CUDA_CHECK(cudaStreamSynchronize(stream));
  check(out.data_bytes < uint64_t{kChunkAlign} << 32, "strip streams of {}×{}: {} bytes, the limit is 64 GiB",
        shape.m, shape.k, out.data_bytes);
  return out;
}

}  // namespace

StripStream make_strip_stream_on_device(Context& context, const TcaBmeView& w) {
  return make_strip_stream_on_device(context, w,
                                     plan_strip_layout(w.m, w.k, 1.0 - w.sparsity(), context.facts()));
}

StripStream make_strip_stream_on_device(Context& context, const TcaBmeView& w, StripLayoutPlan layout) {
  StripShape shape{w.m, w.k, layout.chunks};
  check(layout.chunks >= 1 && layout.chunks <= shape.blocks() && shape.max_chunk_blocks() <= kMaxChunkBlocks,
        "strip streams of {}×{}: {} chunks are no legal cut", w.m, w.k, layout.chunks);
  Measured measured = measure_on_device(context, w, shape);
  while (measured.totals.max_unfolded_bytes > slot_capacity(layout.warps, context.facts())) {
    layout = refine_strip_layout(shape, layout);
    shape.chunks = layout.chunks;
    measured = measure_on_device(context, w, shape);
  }
  const size_t entries = size_t(shape.entries());
  const size_t ticket_bytes = size_t(shape.strips()) * sizeof(uint32_t);
  const auto data = context.allocate_shared(std::max<size_t>(measured.data_bytes, kChunkAlign));
  const auto offsets = context.allocate_shared(entries * sizeof(uint32_t));
  const auto tickets = context.allocate_shared(ticket_bytes);
  SPINFER_CUDA_CHECK(cudaMemsetAsync(tickets.get(), 0, ticket_bytes, context.stream()));
  const auto grid = unsigned((entries * 32 + kThreads - 1) / kThreads);
  write<<<grid, kThreads, 0, context.stream()>>>(
      w, shape, static_cast<const ChunkHeights*>(measured.heights.get()),
      static_cast<const uint64_t*>(measured.byte_offsets.get()), static_cast<uint32_t*>(offsets.get()),
      static_cast<uint8_t*>(data.get()));
  SPINFER_LAUNCH_CHECK("strip stream write");
  SPINFER_CUDA_CHECK(cudaStreamSynchronize(context.stream()));

  StripStream out;
  out.view.shape = shape;
  out.view.offsets = static_cast<const uint32_t*>(offsets.get());
  out.view.heights = static_cast<const ChunkHeights*>(measured.heights.get());
  out.view.data = static_cast<const uint8_t*>(data.get());
  out.view.data_bytes = int64_t(measured.data_bytes);
  out.view.max_height = measured.totals.max_height;
  out.view.max_unfolded_bytes = measured.totals.max_unfolded_bytes;
  out.tickets = static_cast<uint32_t*>(tickets.get());
  out.warps = layout.warps;
  out.device_bytes = out.view.bytes() + int64_t(ticket_bytes);
  out.storage = {data, offsets, measured.heights, tickets};
  return out;
}

}  // namespace spinfer::cuda
