// Decodes strip streams (kernels/format/strip_stream.h) to a dense row-major matrix.
//
// Grid       four warps a block, each pair a chunk of a strip. They bring it to shared memory; each decodes
//            its tier block by block (64 columns) and turns each block in shared memory so that rows leave as
//            16-byte vectors.
// Shared     per pair: the chunk, two rows for the decoder's window, and the tiers' turned blocks.
// Launch     a programmatic dependent one: chunks are fetched while the kernel before still runs (no op
//            writes weights); nothing is written before its end, as it may read the dense matrix.
// Roofline   2 bytes written and 1/8 + 2(1−s) read a weight. Blocks of an SM overlap each other's copies;
//            nothing else is pipelined. 12288×12288, 60 %: 120 µs, 3.7 TB/s (a copy on the device 4.2).
// Tried      more warps a chunk, the next chunk fetched meanwhile, stmatrix, vectors or tensor copies out:
//            half as long without its writes, a fifth longer with them. Pieces of the matrix that stay in the
//            L2, each multiplied before the next is decoded: slower (h200_prefill_steps.json,
//            "scratch_decoding", "scratch_in_pieces").
#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/prefill_decoder.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/strip_stream_decode.h"

#include <cuda_fp16.h>

namespace spinfer::cuda {
namespace {

constexpr int kWarps = 4, kChunks = kWarps / kStripTiers;
constexpr int kTurnStride =
    kBlockColumns + 8;  // halves: eight rows' words of a fragment fall into different banks

struct DecodeParams {
  StripStreamView w;
  int chunk_bytes;  ///< shared memory for a chunk
  bool vectors;     ///< rows of the dense matrix are 16-byte aligned
  __half* dense;
};

/// A chunk in shared memory: its record, then its rows, then what decoding its end touches.
constexpr int chunk_bytes(int blocks, int rows) {
  return (chunk_record_bytes(blocks) + (rows + 2) * kTrackRowBytes + 127) / 128 * 128;
}
constexpr int pair_bytes(int chunk_bytes) {
  return chunk_bytes + kStripRows * kTurnStride * 2;
}

/// By a pair of warps: brings a chunk to shared memory, its record, then its rows.
__device__ void fetch(const DecodeParams& p, int64_t strip, int chunk, int blocks, unsigned char* to) {
  constexpr int kThreads = kStripTiers * 32;
  const int thread = int(threadIdx.x) % kThreads;
  const uint8_t* record = p.w.records + strip * p.w.shape.record_bytes() + p.w.shape.record_begin(chunk);
  const auto* head = reinterpret_cast<const ChunkHead*>(record);
  const uint8_t* rows = p.w.values + (int64_t(p.w.places[strip].row) + head->first_row) * kTrackRowBytes;
  const int record_bytes = chunk_record_bytes(blocks), row_bytes = int(head->rows) * kTrackRowBytes;
  for (int at = thread * 16; at < record_bytes; at += kThreads * 16)
    ptx::copy_async_16(to + at, record + at, 16);
  for (int at = thread * 16; at < row_bytes; at += kThreads * 16)
    ptx::copy_async_16(to + record_bytes + at, rows + at, 16);
  ptx::copy_async_commit();
  ptx::copy_async_wait<0>();
  const int pair = int(threadIdx.x) / kThreads;
  asm volatile("bar.sync %0, %1;" ::"r"(1 + pair), "n"(kThreads) : "memory");  // all copies have landed
}

/// Writes the turned block: 16 rows of 64 columns, what of them exists.
__device__ void write_block(const DecodeParams& p, const uint16_t* turned, int64_t top, int64_t left) {
  constexpr int kVectors = kBlockColumns / 8;
#pragma unroll
  for (int i = 0; i < kTierRows * kVectors / 32; ++i) {
    const int at = i * 32 + int(threadIdx.x % 32);
    const int64_t row = top + at / kVectors, col = left + at % kVectors * 8;
    if (row >= p.w.shape.m || col >= p.w.shape.k) continue;
    const uint16_t* from = turned + at / kVectors * kTurnStride + at % kVectors * 8;
    __half* to = p.dense + row * p.w.shape.k + col;
    if (p.vectors && col + 8 <= p.w.shape.k) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    } else {
      for (int j = 0; j < 8 && col + j < p.w.shape.k; ++j) to[j] = __ushort_as_half(from[j]);
    }
  }
}

__global__ void __launch_bounds__(kWarps * 32) decode_streams_kernel(const DecodeParams p) {
  __shared__ __align__(256) NibbleTable table;
  extern __shared__ __align__(128) unsigned char shared[];
  let_successor_start();
  if (threadIdx.x < 32) table.fill(int(threadIdx.x));
  __syncthreads();  // the table is complete
  const int warp = int(threadIdx.x / 32), pair = warp / kStripTiers, tier = warp % kStripTiers;
  const int64_t entry = int64_t(blockIdx.x) * kChunks + pair;
  if (entry >= p.w.shape.strips() * p.w.shape.chunks) {
    wait_for_predecessor();
    return;
  }
  const int64_t strip = entry / p.w.shape.chunks;
  const int lane = int(threadIdx.x % 32), chunk = int(entry % p.w.shape.chunks);
  const int blocks = p.w.shape.chunk_blocks(chunk);
  unsigned char* slot = shared + pair * pair_bytes(p.chunk_bytes);
  auto* turned = reinterpret_cast<uint16_t*>(slot + p.chunk_bytes) + tier * kTierRows * kTurnStride;
  fetch(p, strip, chunk, blocks, slot);

  const uint32_t record = ptx::shared_address(slot), rows = record + uint32_t(chunk_record_bytes(blocks));
  const uint32_t first_row = load_shared(record + uint32_t(offsetof(ChunkHead, first_row)));
  TierReader<256> reader(table, lane, tier);  // no chunk has more rows
  reader.enter(record, rows, 0u - first_row % kPieceRows * 32);
  const int64_t top = p.w.shape.tier_row(strip, tier);
  reader.load_entries<0>();
  reader.load_values<0>();
  wait_for_predecessor();  // before the first write
  for (int block = 0; block < blocks; ++block) {
    const auto turn = [&](int first_tile, const uint32_t(&a)[8]) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int row = i % 2 * 8 + lane / 4;
        const int col = (first_tile + i / 4) * kTcTile + i % 4 / 2 * 8 + lane % 4 * 2;
        *reinterpret_cast<uint32_t*>(turned + row * kTurnStride + col) = a[i];
      }
    };
    uint32_t a[8];
    reader.load_entries<1>();
    reader.assemble<0>(a);
    reader.load_values<1>();
    turn(0, a);
    if (block + 1 == blocks) reader.finish();
    reader.load_entries<0>();
    reader.assemble<1>(a);
    reader.load_values<0>();
    turn(2, a);
    __syncwarp();  // the block is turned
    write_block(p, turned, top, int64_t(p.w.shape.block_begin(chunk) + block) * kBlockColumns);
    __syncwarp();  // nobody reads it any more
  }
}

}  // namespace

void decode_streams_on_device(Context& context, const StripStreamView& stream, Half* dense) {
  const int64_t blocks = (stream.shape.strips() * stream.shape.chunks + kChunks - 1) / kChunks;
  check(blocks <= INT32_MAX, "decode {}×{}: too many chunks", stream.shape.m, stream.shape.k);
  DecodeParams params{stream, 0, stream.shape.k % 8 == 0 && reinterpret_cast<uintptr_t>(dense) % 16 == 0,
                      reinterpret_cast<__half*>(dense)};
  params.chunk_bytes = chunk_bytes(stream.shape.max_chunk_blocks(), stream.max_chunk_rows);
  const int shared = kChunks * pair_bytes(params.chunk_bytes);
  check(shared <= context.facts().shared_per_block, "decode {}×{}: {} bytes of shared memory, at most {}",
        stream.shape.m, stream.shape.k, shared, context.facts().shared_per_block);
  SPINFER_CUDA_CHECK(
      cudaFuncSetAttribute(decode_streams_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  launch(context, "decode_streams", decode_streams_kernel,
         {dim3(unsigned(blocks)), dim3(kWarps * 32), size_t(shared)}, params);
}

}  // namespace spinfer::cuda
