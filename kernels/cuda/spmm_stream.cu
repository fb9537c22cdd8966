#include <cuda_fp16.h>

#include <algorithm>
#include <type_traits>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/ptx_hopper.cuh"
#include "kernels/cuda/spmm.h"
#include "kernels/cuda/strip_decoder.cuh"
#include "kernels/cuda/tensor_map.h"

namespace spinfer::cuda {
namespace {

/// Everything a launch needs, by value.
struct Problem {
  StripShape shape;
  const uint32_t* offsets;
  const ChunkHeights* heights;
  const uint8_t* data;
  int strips;
  int blocks;         // per strip; a chunk has blocks / chunks of them or one more
  int fewest_blocks;  // blocks / chunks
  int extra_blocks;   // blocks % chunks
  int units;
  int slot_bytes;
  int x_blocks;  // of X in a stage; a chunk's stages are about even
  DecodeFactors factors;
  int n;
  bool x_by_box;    // X through the tensor map; otherwise element by element
  const __half* x;  // [n][k]
  Epilogue epilogue;
  void* y;  // [n][m]
  bool fp32_out;
  float4* partials;   // [grid][2][warps][n_tile / 8][32]
  uint32_t* tickets;  // [strips]
};

/// Room for X in a stage, in blocks of 64 columns, and stages: 32 KiB whatever the tokens. Few tokens have
/// whole chunks in a stage (each stage costs a warp some 40 instructions), many tokens need the slack of more
/// stages.
template <int kN>
inline constexpr int kXBlocks = kN <= 16 ? 8 : 64 / kN;
template <int kN>
inline constexpr int kXStages = 256 / kN / kXBlocks<kN>;

/// Helper warps: kFetchWarps bring the chunks of kWarps / kFetchWarps multiplying warps each, one brings X.
inline constexpr int kFetchWarps = 3;
template <int kWarps>
inline constexpr int kThreads = (kWarps + kFetchWarps + 1) * 32;

/// The shared-memory map; kWarps · kSpmmStages slots of `slot_bytes` follow, then kSlotOverrun.
template <int kN, int kWarps>
struct SharedMap {
  alignas(1024) uint8_t x[kXStages<kN>][kXBlocks<kN>][kN * 128];  // [token][64 columns], 128-byte swizzle
  uint64_t x_full[kXStages<kN>];
  uint64_t x_empty[kXStages<kN>];
  uint64_t chunk_full[kWarps][kSpmmStages];
  uint64_t chunk_empty[kWarps][kSpmmStages];
  alignas(128) uint8_t slots[];
};
inline constexpr int kSlotOverrun = 2 * kChunkRowBytes;  // windows may begin at the row after the last

__device__ int first_unit(int units, int grid, int block) {
  return int(int64_t(units) * block / grid);
}
/// The block whose run holds `unit`.
__device__ int block_of(int units, int grid, int unit) {
  return int((int64_t(unit + 1) * grid - 1) / units);
}

/// Walks a strip's chunks, round and round. StripShape::chunk_blocks without its divisions.
struct ChunkWalk {
  int chunk;
  int remainder;  // blocks · chunk modulo chunks

  __device__ ChunkWalk(const Problem& p, int first)
      : chunk(first), remainder(int(int64_t(p.blocks) * first % p.shape.chunks)) {}
  __device__ int blocks(const Problem& p) const {
    return p.fewest_blocks + (remainder + p.extra_blocks >= p.shape.chunks);
  }
  /// True when it comes round.
  __device__ bool next(const Problem& p) {
    remainder += p.extra_blocks;
    if (remainder >= p.shape.chunks) remainder -= p.shape.chunks;
    if (++chunk < p.shape.chunks) return false;
    chunk = 0;
    return true;
  }
};

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
__device__ void fetch_chunk(const Problem& p, const ChunkSource& source, int blocks, uint32_t slot,
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
__device__ void bring_chunks(const Problem& p, SharedMap<kN, kWarps>& shared, ChunkWalk walk, int row_block,
                             int units, int first, int lane) {
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
__device__ void bring_x(const Problem& p, const CUtensorMap* map, SharedMap<kN, kWarps>& shared,
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

/// Stage and phase of X as a multiplying warp sees them. A stage is let go one tile late: its last wgmma is
/// then over.
template <int kN>
struct XStage {
  uint32_t full;  // shared address of x_full[0]; x_empty[0] is kXStages barriers on
  int stage = 0;
  uint32_t parity = 0;
  uint32_t used = 0;  // x_empty of the stage still to be let go, or 0

  __device__ void wait() const { ptx::barrier_wait(full + 8 * stage, parity); }
  __device__ void let_go(int lane) {
    if (used && lane == 0) ptx::barrier_arrive(used);
    used = 0;
  }
  __device__ void next() {
    used = full + 8 * (kXStages<kN> + stage);
    if (++stage == kXStages<kN>) {
      stage = 0;
      parity ^= 1;
    }
  }
};

template <int kN>
inline constexpr bool kUseWgmma = kN >= 32;

/// acc += two assembled tiles · X's columns of a pair, by wgmma. X is read from shared memory by the tensor
/// cores.
template <int kN>
struct WarpgroupMultiplier {
  uint32_t x;  // operand address of X's next tile

  __device__ WarpgroupMultiplier(uint32_t x_stage, int) : x(ptx::operand_address(x_stage)) {}
  __device__ void load(int) {}
  __device__ void multiply(float (&acc)[kN / 2], const uint32_t (&a)[8], int pair) const {
    ptx::wgmma_fence();
    ptx::wgmma<kN>(acc, a, ptx::swizzled_operand(x + 4 * pair));
    ptx::wgmma<kN>(acc, a + 4, ptx::swizzled_operand(x + 4 * pair + 2));
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();  // the pair before is done: its registers and its X may go
  }
  __device__ void next_block() { x += kN * 128 / 16; }
};

/// The same by mma.sync: warps need not meet, which for few tokens is worth more than X's way through
/// registers costs.
template <int kN>
struct WarpMultiplier {
  uint32_t x;  // this lane's row of X for ldmatrix
  uint32_t b[kN / 8][4];

  __device__ WarpMultiplier(uint32_t x_stage, int lane)
      : x(x_stage + lane % 8 * 128 + (lane / 8 ^ lane % 8) * 16) {}
  __device__ void load(int pair) {
#pragma unroll
    for (int i = 0; i < kN / 8; ++i) ptx::load_matrix_x4(b[i], (x ^ pair * 64) + i * 1024);
  }
  __device__ void multiply(float (&acc)[kN / 2], const uint32_t (&a)[8], int) const {
#pragma unroll
    for (int i = 0; i < kN / 8; ++i) {
      ptx::mma_16816(acc + 4 * i, a, b[i][0], b[i][1]);
      ptx::mma_16816(acc + 4 * i, a + 4, b[i][2], b[i][3]);
    }
  }
  __device__ void next_block() {
    x += kN * 128;
  }
};

/// A warp's way through its chunk, a pair of tiles a step. Three pairs are under way: the table entries of
/// one and the values of one are being loaded while one is assembled. Behind the chunk the masks are zero,
/// which loads what is there and moves nothing.
struct StripCursor {
  StripDecoder decoder;
  uint32_t masks;
  int blocks;
  uint32_t next_mask;
  PairEntries entries;
  PairWindow window;

  __device__ StripCursor(const Problem& p, uint32_t slot, int blocks, int lane)
      : decoder{p.factors, 0}, masks(slot + kChunkRankBytes + 4 * lane), blocks(blocks) {
    uint32_t rank;
    asm volatile("ld.shared.u8 %0, [%1];" : "=r"(rank) : "r"(slot + lane));
    const BlockNibbles first(load_shared(masks));
    next_mask = mask_of(1);
    decoder.column = slot + kChunkRankBytes + blocks * kChunkRowBytes + 4 * rank;
    decoder.load_entries(first, 0, entries);
    decoder.load_window(entries, window);
    decoder.load_entries(first, 1, entries);
  }
  __device__ uint32_t mask_of(int block) const {
    return block < blocks ? load_shared(masks + block * kChunkRowBytes) : 0u;
  }
  /// The registers of the current block's pair 0, then 1; starts the loads of the two pairs to come.
  __device__ void step(int block, int pair, uint32_t (&a)[8]) {
    window.assemble(a);
    decoder.load_window(entries, window);
    decoder.load_entries(BlockNibbles(next_mask), pair, entries);
    if (pair == 1) next_mask = mask_of(block + 2);
  }
};

/// acc += chunk · X. `slot` holds the unfolded chunk. The last wgmmas may still run on return.
template <int kN, int kWarps>
__device__ void multiply_chunk(const Problem& p, SharedMap<kN, kWarps>& shared, uint32_t slot, int blocks,
                               XStage<kN>& x, int lane, float (&acc)[kN / 2]) {
  using Multiplier = std::conditional_t<kUseWgmma<kN>, WarpgroupMultiplier<kN>, WarpMultiplier<kN>>;
  StripCursor cursor(p, slot, blocks, lane);
  for (int begin = 0; begin < blocks; begin += p.x_blocks) {
    const int end = min(begin + p.x_blocks, blocks);
    Multiplier multiplier(ptx::shared_address(shared.x) + x.stage * uint32_t(sizeof(shared.x[0])), lane);
    x.wait();
#pragma unroll 1
    for (int block = begin; block < end; ++block) {
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        multiplier.load(pair);
        uint32_t a[8];
        cursor.step(block, pair, a);
        multiplier.multiply(acc, a, pair);
        if (kUseWgmma<kN> && pair == 0) x.let_go(lane);
      }
      multiplier.next_block();
    }
    x.next();
    if (!kUseWgmma<kN>) x.let_go(lane);
  }
}

/// Rows of `strip` to y, with the epilogue.
template <int kN>
__device__ void store_rows(const Problem& p, int strip, int lane, const float (&acc)[kN / 2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = int64_t(strip) * kStripRows + half * 8 + lane / 4;
    if (row >= p.shape.m) continue;
    const float bias = p.epilogue.bias ? __half2float(p.epilogue.bias[row]) : 0.0f;
#pragma unroll
    for (int i = 0; i < kN / 4; ++i) {
      const int token = i / 2 * 8 + lane % 4 * 2 + i % 2;
      if (token >= p.n) continue;
      const int64_t index = token * p.shape.m + row;
      const float sum = acc[i / 2 * 4 + half * 2 + i % 2];
      if (p.fp32_out) {
        static_cast<float*>(p.y)[index] = activate(sum + bias, p.epilogue.act);
      } else {
        static_cast<__half*>(p.y)[index] = finish(sum, bias, p.epilogue, index);
      }
    }
  }
}

/// A row block's owners: the blocks that have units of it. If there are several their sums meet in the
/// workspace: who comes last adds them in block order, so the result does not depend on who that is.
template <int kN, int kWarps>
struct RowBlockEnd {
  int row_block, strip, first, last;
  uint32_t arrived = 0;  // of the others, when `peek` looked

  __device__ RowBlockEnd(const Problem& p, int row_block, int warp)
      : row_block(row_block),
        strip(row_block * kWarps + warp),
        first(block_of(p.units, int(gridDim.x), row_block * p.shape.chunks)),
        last(block_of(p.units, int(gridDim.x), (row_block + 1) * p.shape.chunks - 1)) {}

  __device__ float4* partial(const Problem& p, int block, int warp, int lane) const {
    const bool is_first = first_unit(p.units, int(gridDim.x), block) / p.shape.chunks == row_block;
    return p.partials + ((int64_t(block) * 2 + !is_first) * kWarps + warp) * (kN / 8) * 32 + lane;
  }
  /// Begins to read how many others are done. Before the run's last chunk: mostly all are, and nothing of
  /// ours need be written.
  __device__ void peek(const Problem& p) {
    ptx::wait_for_previous_grids();
    if (first != last) arrived = ptx::load_acquire(&p.tickets[strip]);
  }
  __device__ void finish(const Problem& p, int warp, int lane, const float (&acc)[kN / 2]) const {
    const int me = int(blockIdx.x);
    if (first == last) return store_rows<kN>(p, strip, lane, acc);
    if (__shfl_sync(~0u, arrived, 0) != uint32_t(last - first)) {
      float4* mine = partial(p, me, warp, lane);
#pragma unroll
      for (int i = 0; i < kN / 8; ++i) {
        mine[i * 32] = make_float4(acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]);
      }
      __syncwarp();  // all lanes' sums are out before the ticket says so
      uint32_t ticket = 0;
      if (lane == 0) ticket = ptx::add_acquire_release(&p.tickets[strip], 1u);
      if (__shfl_sync(~0u, ticket, 0) != uint32_t(last - first)) return;
    }
    float sum[kN / 2] = {};
    for (int block = first; block <= last; ++block) {
      const float4* from = partial(p, block, warp, lane);
#pragma unroll
      for (int i = 0; i < kN / 8; ++i) {
        float4 v = make_float4(acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]);
        if (block != me) v = __ldcg(from + i * 32);
        sum[4 * i] += v.x;
        sum[4 * i + 1] += v.y;
        sum[4 * i + 2] += v.z;
        sum[4 * i + 3] += v.w;
      }
    }
    if (lane == 0) p.tickets[strip] = 0;
    store_rows<kN>(p, strip, lane, sum);
  }
};

template <int kN, int kWarps>
__global__ void __launch_bounds__(kThreads<kWarps>, 1)
    spmm_stream_kernel(const __grid_constant__ Problem p, const __grid_constant__ CUtensorMap x_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __shared__ NibbleEntry nibble_table[16];
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& shared = *reinterpret_cast<SharedMap<kN, kWarps>*>(raw);
  const int warp = __shfl_sync(~0u, int(threadIdx.x) / 32, 0);  // known to be uniform
  const int lane = int(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kXStages<kN>; ++i) {
      ptx::barrier_init(ptx::shared_address(&shared.x_full[i]), 1);
      ptx::barrier_init(ptx::shared_address(&shared.x_empty[i]), kWarps);
    }
    for (int i = 0; i < kWarps * kSpmmStages; ++i) {
      ptx::barrier_init(ptx::shared_address(&shared.chunk_full[0][i]),
                        32 + 1);  // the lanes' columns, the bulk
      ptx::barrier_init(ptx::shared_address(&shared.chunk_empty[0][i]), 1);
    }
    ptx::barrier_init_fence();
  }
  fill_nibble_table(nibble_table, int(threadIdx.x));
  __syncthreads();  // barriers and table before anyone uses them
  ptx::let_next_grid_start();

  const int begin = first_unit(p.units, int(gridDim.x), int(blockIdx.x));
  const int end = first_unit(p.units, int(gridDim.x), int(blockIdx.x) + 1);
  ChunkWalk walk(p, begin % p.shape.chunks);
  int row_block = begin / p.shape.chunks;
  if (warp == kWarps + kFetchWarps) return bring_x<kN, kWarps>(p, &x_map, shared, walk, end - begin, lane);
  if (warp >= kWarps) {
    return bring_chunks<kN, kWarps>(p, shared, walk, row_block, end - begin, warp - kWarps, lane);
  }

  const uint32_t slots = ptx::shared_address(shared.slots) + warp * kSpmmStages * p.slot_bytes;
  const uint32_t full = ptx::shared_address(shared.chunk_full[warp]);
  const uint32_t empty = ptx::shared_address(shared.chunk_empty[warp]);
  XStage<kN> x{ptx::shared_address(shared.x_full)};
  int stage = 0;
  uint32_t parity = 0;
  float acc[kN / 2] = {};
  for (int unit = begin; unit < end;) {
    RowBlockEnd<kN, kWarps> row_block_end(p, row_block, warp);
    const bool inside = row_block_end.strip < p.strips;  // else the warpgroup only lets X pass
    for (bool last = false; !last; ++unit) {
      const int blocks = walk.blocks(p);
      last = walk.next(p) || unit + 1 == end;
      if (!inside) {
#pragma unroll 1
        for (int block = 0; block < blocks; block += p.x_blocks) {
          x.wait();
          x.let_go(lane);
          x.next();
        }
        continue;
      }
      if (last) row_block_end.peek(p);
      ptx::barrier_wait(full + 8 * stage, parity);
      multiply_chunk<kN, kWarps>(p, shared, slots + stage * p.slot_bytes, blocks, x, lane, acc);
      __syncwarp();  // all lanes have read the slot
      if (lane == 0) {
        ptx::fence_async_proxy();  // what lanes' copies wrote and we read, before the bulk copy that refills
                                   // it
        ptx::barrier_arrive(empty + 8 * stage);
      }
      if (++stage == kSpmmStages) {
        stage = 0;
        parity ^= 1;
      }
    }
    if (kUseWgmma<kN>) ptx::wgmma_wait<0>();
    if (inside) row_block_end.finish(p, warp, lane, acc);
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) acc[i] = 0.0f;
    ++row_block;
  }
#else
  __trap();  // sm_90a only; plans choose this kernel nowhere else
#endif
}

template <int kN, int kWarps>
void launch(const Problem& problem, const SpmmPlan& plan, const CUtensorMap& map, cudaStream_t stream) {
  const auto kernel = spmm_stream_kernel<kN, kWarps>;
  SPINFER_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_bytes));
  cudaLaunchAttribute dependent{};
  dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  dependent.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(plan.grid));
  config.blockDim = dim3(unsigned(kThreads<kWarps>));
  config.dynamicSmemBytes = size_t(plan.shared_bytes);
  config.stream = stream;
  config.attrs = &dependent;
  config.numAttrs = 1;
  SPINFER_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, problem, map));
}

template <int kWarps>
void launch_for_tokens(const Problem& problem, const SpmmPlan& plan, const CUtensorMap& map,
                       cudaStream_t stream) {
  switch (plan.n_tile) {
    case 8:
      return launch<8, kWarps>(problem, plan, map, stream);
    case 16:
      return launch<16, kWarps>(problem, plan, map, stream);
    case 32:
      return launch<32, kWarps>(problem, plan, map, stream);
    default:
      return launch<64, kWarps>(problem, plan, map, stream);
  }
}

// The plan's constant is this kernel's map.
template <int kN>
using WidestMap = SharedMap<kN, 12>;
template <int kN>
constexpr int slots_begin = offsetof(WidestMap<kN>, slots);
static_assert(slots_begin<8> + kSlotOverrun <= kSpmmFixedBytes);
static_assert(slots_begin<16> + kSlotOverrun <= kSpmmFixedBytes);
static_assert(slots_begin<32> + kSlotOverrun <= kSpmmFixedBytes);
static_assert(slots_begin<64> + kSlotOverrun <= kSpmmFixedBytes);

}  // namespace

size_t spmm_workspace_bytes(const StripStream& w, const GpuFacts& gpu) {
  return plan_spmm(w.view.shape, w.view.max_unfolded_bytes, w.warps, kStreamMaxTokens, gpu).workspace_bytes;
}

void spmm_stream(Context& context, const SpmmArgs& args) {
  const StripShape& shape = args.w.view.shape;
  check(args.n >= 1 && args.n <= kStreamMaxTokens, "stream SpMM {}×{}: {} tokens, legal are 1 to {}", shape.m,
        shape.k, args.n, kStreamMaxTokens);
  const SpmmPlan plan =
      plan_spmm(shape, args.w.view.max_unfolded_bytes, args.w.warps, args.n, context.facts());
  Problem p{};
  p.shape = shape;
  p.offsets = args.w.view.offsets;
  p.heights = args.w.view.heights;
  p.data = args.w.view.data;
  p.strips = int(shape.strips());
  p.blocks = shape.blocks();
  p.fewest_blocks = shape.blocks() / shape.chunks;
  p.extra_blocks = shape.blocks() % shape.chunks;
  p.units = int(plan.units);
  p.slot_bytes = plan.slot_bytes;
  const int x_room = plan.n_tile <= 16 ? 8 : 64 / plan.n_tile;
  const int x_stages = (shape.max_chunk_blocks() + x_room - 1) / x_room;
  p.x_blocks = (shape.max_chunk_blocks() + x_stages - 1) / x_stages;
  p.n = args.n;
  p.x = reinterpret_cast<const __half*>(args.x);
  p.epilogue = {reinterpret_cast<const __half*>(args.bias), reinterpret_cast<const __half*>(args.residual),
                args.act};
  p.y = args.y;
  p.fp32_out = args.fp32_out;
  p.partials = static_cast<float4*>(context.workspace(plan.workspace_bytes));
  p.tickets = args.w.tickets;
  CUtensorMap map{};
  p.x_by_box = make_activation_map(map, args.x, args.n, shape.k, kBlockColumns, plan.n_tile);
  check(plan.warps == 8 || plan.warps == 12, "stream SpMM {}×{}: {} warps, legal are 8 and 12", shape.m,
        shape.k, plan.warps);
  if (plan.warps == 8) return launch_for_tokens<8>(p, plan, map, context.stream());
  launch_for_tokens<12>(p, plan, map, context.stream());
}

}  // namespace spinfer::cuda
