// Decodes strip streams (kernels/format/strip_stream.h) to a dense row-major matrix.
//
// Grid       four warps a block, a chunk of a strip each. A warp brings its chunk to shared memory, decodes
// it block by
//            block (64 columns) and turns each block in shared memory so that rows leave as 16-byte vectors.
// Shared     per warp: the unfolded chunk, two rows for the decoder's window, and the turned block.
// Roofline   2 bytes written and 1/8 + 2(1−s) read a weight. Blocks of an SM overlap each other's copies;
// nothing else is
//            pipelined.
#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/prefill_decoder.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/strip_stream_decode.h"

#include <cuda_fp16.h>

namespace spinfer::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kTurnStride =
    kBlockColumns + 8;  // halves: eight rows' words of a fragment fall into different banks

struct DecodeParams {
  StripStreamView w;
  int chunk_bytes;  ///< shared memory for a chunk
  bool vectors;     ///< rows of the dense matrix are 16-byte aligned
  __half* dense;
};

constexpr int warp_bytes(int chunk_bytes) {
  return chunk_bytes + kStripRows * kTurnStride * 2;
}

/// Eight bytes, by this thread.
__device__ inline void copy_async_8(uint32_t shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared), "l"(global) : "memory");
}

/// Brings a chunk to shared memory, its ragged columns unfolded.
__device__ void fetch(const DecodeParams& p, int64_t entry, int blocks, unsigned char* to) {
  const int lane = int(threadIdx.x % 32);
  const uint8_t* from = p.w.data + int64_t(p.w.offsets[entry]) * kChunkAlign;
  const ChunkHeights& heights = p.w.heights[entry];
  const int rows = heights.row[kStripPairs - 1];
  const int bytes = unfolded_chunk_bytes(blocks, rows);
  for (int at = lane * 16; at < bytes; at += 32 * 16) ptx::copy_async_16(to + at, from + at, 16);
  const uint8_t* end = from + bytes;
  for (int pair = 0; pair < kStripPairs - 1; ++pair) {
    const int ragged = heights.row[pair] - rows;
    for (int r = lane; r < ragged; r += 32)
      copy_async_8(ptx::shared_address(to) + uint32_t(bytes + r * kChunkRowBytes + pair * 8), end + r * 8);
    end += ragged * 8;
  }
  ptx::copy_async_commit();
  ptx::copy_async_wait<0>();
  __syncwarp();  // every lane's copies have landed
}

/// Writes the turned block: 16 rows of 64 columns, what of them exists.
__device__ void write_block(const DecodeParams& p, const uint16_t* turned, int64_t top, int64_t left) {
  constexpr int kVectors = kBlockColumns / 8;
#pragma unroll
  for (int i = 0; i < kStripRows * kVectors / 32; ++i) {
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
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ uint32_t table[16];
  if (threadIdx.x < 16) table[threadIdx.x] = nibble_selectors(threadIdx.x);
  __syncthreads();  // the table is complete
  const int64_t entry = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (entry >= p.w.shape.entries()) return;
  const int lane = int(threadIdx.x % 32), chunk = int(entry % p.w.shape.chunks);
  const int blocks = p.w.shape.chunk_blocks(chunk);
  unsigned char* slot = shared + int(threadIdx.x / 32) * warp_bytes(p.chunk_bytes);
  auto* turned = reinterpret_cast<uint16_t*>(slot + p.chunk_bytes);
  fetch(p, entry, blocks, slot);

  BlockDecoder decoder(ptx::shared_address(table));
  decoder.begin(ptx::shared_address(slot) + uint32_t(unfolded_chunk_bytes(blocks, 0)) + slot[lane] * 4u);
  const auto* masks = reinterpret_cast<const uint32_t*>(slot + kChunkRankBytes) + lane;
  const int64_t top = entry / p.w.shape.chunks * kStripRows;
  for (int block = 0; block < blocks; ++block) {
    uint32_t a[16];
    decoder.block(masks[block * kStripLanes], a);
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int row = i % 2 * 8 + lane / 4, col = i / 4 * kTcTile + i / 2 % 2 * 8 + lane % 4 * 2;
      *reinterpret_cast<uint32_t*>(turned + row * kTurnStride + col) = a[i];
    }
    __syncwarp();  // the block is turned
    write_block(p, turned, top, int64_t(p.w.shape.block_begin(chunk) + block) * kBlockColumns);
    __syncwarp();  // nobody reads it any more
  }
}

}  // namespace

void decode_streams_on_device(Context& context, const StripStreamView& stream, Half* dense) {
  const int64_t blocks = (stream.shape.entries() + kWarps - 1) / kWarps;
  check(blocks <= INT32_MAX, "decode {}×{}: too many chunks", stream.shape.m, stream.shape.k);
  DecodeParams params{stream, 0, stream.shape.k % 8 == 0 && reinterpret_cast<uintptr_t>(dense) % 16 == 0,
                      reinterpret_cast<__half*>(dense)};
  params.chunk_bytes = (stream.max_unfolded_bytes + 2 * kChunkRowBytes + 127) / 128 * 128;
  const int shared = kWarps * warp_bytes(params.chunk_bytes);
  check(shared <= context.facts().shared_per_block, "decode {}×{}: {} bytes of shared memory, at most {}",
        stream.shape.m, stream.shape.k, shared, context.facts().shared_per_block);
  SPINFER_CUDA_CHECK(
      cudaFuncSetAttribute(decode_streams_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  decode_streams_kernel<<<unsigned(blocks), kWarps * 32, size_t(shared), context.stream()>>>(params);
  SPINFER_LAUNCH_CHECK("decode_streams_kernel");
}

}  // namespace spinfer::cuda
