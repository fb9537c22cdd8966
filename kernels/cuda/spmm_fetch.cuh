// The helper warps of the Hopper SpMM (spmm_stream.cu): they bring chunks of strips and X into shared memory.
#pragma once

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/ptx_hopper.cuh"
#include "kernels/cuda/spmm_shared.cuh"

namespace spinfer::cuda::spmm {

/// One multiplying warp's chunks as a fetch warp sees them. The directory is read one chunk ahead.
struct ChunkSource {
  const uint32_t* entry_pointer = nullptr;  // lanes 0 … 3: the heights' words, others: the offset
  uint32_t entry_word = 0;
  int strip = 0;

  ChunkSource() = default;
  __device__ ChunkSource(const Problem& p, int strip, int chunk, int lane) : strip(strip) {
    const int64_t entry = int64_t(strip) * p.shape.chunks + chunk;
    entry_pointer =
        lane < 4 ? reinterpret_cast<const uint32_t*>(p.heights + entry) + lane : p.offsets + entry;
  }
  /// The compiler must not know the word to be the warp's, or it moves it to a uniform register at once and
  /// waits.
  __device__ void read(const Problem& p, int lane) {
    if (strip < p.strips && lane < 5) entry_word = *entry_pointer;
  }
  __device__ void skip(int entries, int lane) { entry_pointer += int64_t(entries) * (lane < 4 ? 4 : 1); }
};

/// Starts the copies of one chunk into `slot`: ranks, masks and whole rows in bulk, the columns above by the
/// lanes. Lane q of a half warp serves column q: together they write a row, each its own banks; the upper
/// half has every second row.
__device__ inline void fetch_chunk(const Problem& p, const ChunkSource& source, int blocks, uint32_t slot,
                                   uint32_t full, uint32_t empty, uint32_t parity,
                                   const uint32_t (&before_weights)[4], uint64_t policy, int lane) {
  const int q = lane % 16, odd = lane / 16;
  uint32_t height_words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) height_words[i] = __shfl_sync(~0u, source.entry_word, i);
  const uint32_t own_word = __shfl_sync(~0u, source.entry_word, q / 4);
  const uint8_t* from = p.data + uint64_t(__shfl_sync(~0u, source.entry_word, 4)) * kChunkAlign;
  const uint32_t rows = height_words[3] >> 24;
  const uint32_t whole = kChunkRankBytes + (blocks + rows) * kChunkRowBytes;
  uint32_t before = 0;  // rows of the columns before ours
#pragma unroll
  for (int i = 0; i < 4; ++i) before = __dp4a(height_words[i], before_weights[i], before);
  const uint8_t* column = from + whole + (before - q * rows + odd) * 8;
  uint32_t target = slot + whole + odd * kChunkRowBytes + q * 8;
  int height = int((own_word >> (q % 4 * 8) & 255u) - rows) - odd;
  const int highest = int((height_words[0] & 255u) - rows);
  ptx::barrier_wait(empty, parity);
  if (lane == 0) {
    ptx::barrier_arrive_expect(full, whole);
    ptx::copy_bulk(slot, from, whole, full, policy);
  }
  constexpr int kUnrolled = 8;
#pragma unroll 1
  for (int done = 0; done < highest; done += 2 * kUnrolled) {
#pragma unroll
    for (int i = 0; i < kUnrolled; ++i) {
      if (height > 2 * i) ptx::copy_async_8(target + i * 2 * kChunkRowBytes, column + i * 2 * 8);
    }
    target += kUnrolled * 2 * kChunkRowBytes;
    column += kUnrolled * 2 * 8;
    height -= kUnrolled * 2;
  }
  ptx::barrier_arrive_copies(full);
}

/// A fetch warp: brings the chunks of multiplying warps `first`, first + kFetchWarps, …
template <int kN, int kWarps>
__device__ inline void bring_chunks(const Problem& p, SharedMap<kN, kWarps>& shared, ChunkWalk walk,
                                    int row_block, int units, int first, int lane) {
  constexpr int kServed = (kWarps + kFetchWarps - 1) / kFetchWarps;
  const uint64_t policy = ptx::evict_first_policy();
  uint32_t before_weights[4];  // 1 for the bytes of heights of the columns before this lane's
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int bytes = min(max(lane % 16 - 4 * i, 0), 4);
    before_weights[i] = uint32_t((uint64_t{1} << (8 * bytes)) - 1) & 0x01010101u;
  }
  ChunkSource sources[kServed];
#pragma unroll
  for (int i = 0; i < kServed; ++i) {
    sources[i] = ChunkSource(p, row_block * kWarps + first + i * kFetchWarps, walk.chunk, lane);
    sources[i].read(p, lane);
  }
  int stage = 0;
  uint32_t parity = 1;  // the slots begin empty
  for (int unit = 0; unit < units; ++unit) {
    const int blocks = walk.blocks(p);
    const bool wraps = walk.next(p);
#pragma unroll
    for (int i = 0; i < kServed; ++i) {
      const int warp = first + i * kFetchWarps;
      if (kWarps % kFetchWarps && warp >= kWarps) break;
      ChunkSource& source = sources[i];
      if (source.strip < p.strips) {
        const uint32_t slot = ptx::shared_address(shared.slots) + (warp * kSpmmStages + stage) * p.slot_bytes;
        fetch_chunk(p, source, blocks, slot, ptx::shared_address(&shared.chunk_full[warp][stage]),
                    ptx::shared_address(&shared.chunk_empty[warp][stage]), parity, before_weights, policy,
                    lane);
      }
      source.skip(wraps ? (kWarps - 1) * p.shape.chunks + 1 : 1, lane);
      if (wraps) source.strip += kWarps;
      if (unit + 1 < units) source.read(p, lane);
    }
    if (++stage == kSpmmStages) {
      stage = 0;
      parity ^= 1;
    }
  }
}

/// The producer warp: brings X, stage by stage, for all units of the block.
template <int kN, int kWarps>
__device__ inline void bring_x(const Problem& p, const CUtensorMap* map, SharedMap<kN, kWarps>& shared,
                               ChunkWalk walk, int units, int lane) {
  ptx::wait_for_previous_grids();
  int stage = 0;
  uint32_t parity = 1;  // the stages begin empty
  int block = p.shape.block_begin(walk.chunk);
  for (int unit = 0; unit < units; ++unit) {
    const int last = block + walk.blocks(p);
    for (; block < last; block += p.x_blocks) {
      const int count = min(p.x_blocks, last - block);
      const uint32_t full = ptx::shared_address(&shared.x_full[stage]);
      ptx::barrier_wait(ptx::shared_address(&shared.x_empty[stage]), parity);
      if (p.x_by_box) {
        if (lane == 0) {
          ptx::barrier_arrive_expect(full, count * kN * 128);
          for (int i = 0; i < count; ++i) {
            ptx::copy_box(ptx::shared_address(shared.x[stage][i]), map, (block + i) * kBlockColumns, 0, full);
          }
        }
      } else {
        for (int i = lane; i < count * kN * kBlockColumns; i += 32) {
          const int col = i % kBlockColumns, token = i / kBlockColumns % kN, b = i / kBlockColumns / kN;
          const int64_t k = int64_t(block + b) * kBlockColumns + col;
          const bool inside = token < p.n && k < p.shape.k;
          auto* row = reinterpret_cast<__half*>(shared.x[stage][b] + token * 128);
          row[(col / 8 ^ token % 8) * 8 + col % 8] = inside ? p.x[token * p.shape.k + k] : __half(0.0f);
        }
        ptx::fence_async_proxy();  // wgmma reads what ordinary stores wrote
        __syncwarp();
        if (lane == 0) ptx::barrier_arrive(full);
      }
      if (++stage == kXStages<kN>) {
        stage = 0;
        parity ^= 1;
      }
    }
    block = walk.next(p) ? 0 : last;
  }
}

}  // namespace spinfer::cuda::spmm
