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

/// X columns per stage: few for many tokens, so that the stages take 32 KiB at most.
template <int kN>
inline constexpr int kXBlocks = kN <= 16   ? 4
                                : kN == 32 ? 2
                                           : 1;
inline constexpr int kXStages = 4;

/// The shared-memory map; kWarps · kSpmmStages slots of `slot_bytes` follow, then kSlotOverrun.
template <int kN, int kWarps>
struct SharedMap {
  alignas(1024) uint8_t x[kXStages][kXBlocks<kN>][kN * 128];  // [token][64 columns], 128-byte swizzle
  uint64_t x_full[kXStages];
  uint64_t x_empty[kXStages];
  uint64_t chunk_full[kWarps][kSpmmStages];
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

/// Brings a warp's chunks into its slots, in order. The directory is read one chunk ahead.
struct ChunkFetch {
  ChunkWalk walk;
  int strip;
  int left;  // chunks still to fetch
  uint64_t policy;
  uint32_t before_weights[4];  // 1 for the bytes of heights of the columns before this lane's
  uint32_t entry_word = 0;     // lanes 0 … 3: the heights' words, lane 4: the offset
  uint32_t own_height = 0;

  /// Lanes q and q + 16 serve column q: lanes of a half warp write one row, each its own banks.
  __device__ ChunkFetch(const Problem& p, ChunkWalk first, int first_strip, int count, int lane)
      : walk(first),
        strip(first_strip),
        left(first_strip < p.strips ? count : 0),
        policy(ptx::evict_first_policy()) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int bytes = min(max(lane % 16 - 4 * i, 0), 4);
      before_weights[i] = uint32_t((uint64_t{1} << (8 * bytes)) - 1) & 0x01010101u;
    }
    read_directory(p, lane);
  }

  /// A word a lane: values the compiler knew to be the warp's it would move to uniform registers at once, and
  /// wait.
  __device__ void read_directory(const Problem& p, int lane) {
    if (left <= 0) return;
    const int64_t entry = int64_t(strip) * p.shape.chunks + walk.chunk;
    const auto* heights = reinterpret_cast<const uint32_t*>(&p.heights[entry]);
    const uint32_t* word = lane < 4 ? heights + lane : p.offsets + entry;
    if (lane < 5) entry_word = *word;
    own_height = p.heights[entry].row[lane % 16];
  }

  /// Starts the copies of the next chunk: ranks, masks and whole rows in bulk, the columns above by the
  /// lanes.
  template <int kWarps>
  __device__ void next(const Problem& p, uint32_t slot, uint32_t barrier, int lane) {
    if (left <= 0) return;
    const int blocks = walk.blocks(p);
    const auto height_word = [&](int i) { return __shfl_sync(~0u, entry_word, i); };
    const uint32_t last_heights = height_word(3), first_heights = height_word(0);
    const uint8_t* from = p.data + uint64_t(__shfl_sync(~0u, entry_word, 4)) * kChunkAlign;
    const uint32_t rows = last_heights >> 24;
    const uint32_t whole = kChunkRankBytes + (blocks + rows) * kChunkRowBytes;
    if (ptx::elect_one()) {
      ptx::barrier_arrive_expect(barrier, whole);
      ptx::copy_bulk(slot, from, whole, barrier, policy);
    }
    uint32_t before = 0;  // rows of the columns before ours
    before = __dp4a(first_heights, before_weights[0], before);
    before = __dp4a(height_word(1), before_weights[1], before);
    before = __dp4a(height_word(2), before_weights[2], before);
    before = __dp4a(last_heights, before_weights[3], before);
    const int q = lane % 16, odd = lane / 16;  // every other row is ours
    const uint8_t* source = from + whole + (before - q * rows + odd) * 8;
    uint32_t target = slot + whole + odd * kChunkRowBytes + q * 8;
    int height = int(own_height - rows) - odd;
    const int highest = int((first_heights & 255u) - rows);
#pragma unroll 1
    for (int done = 0; done < highest; done += 2 * kUnrolled) {
#pragma unroll
      for (int i = 0; i < kUnrolled; ++i) {
        if (height > 2 * i) ptx::copy_async_8(target + i * 2 * kChunkRowBytes, source + i * 2 * 8);
      }
      target += kUnrolled * 2 * kChunkRowBytes;
      source += kUnrolled * 2 * 8;
      height -= kUnrolled * 2;
    }
    ptx::barrier_arrive_copies(barrier);
    --left;
    if (walk.next(p)) {
      strip += kWarps;
      if (strip >= p.strips) left = 0;
    }
    read_directory(p, lane);
  }
  static constexpr int kUnrolled = 8;  // 16 rows: more than most chunks have above the whole ones
};

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
    for (; block < last; block += kXBlocks<kN>) {
      const int count = min(kXBlocks<kN>, last - block);
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
      if (++stage == kXStages) {
        stage = 0;
        parity ^= 1;
      }
    }
    block = walk.next(p) ? 0 : last;
  }
}

/// Stage and phase of X as a multiplying warp sees them. A stage is let go one tile late: its last wgmma is
/// then over.
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
    used = full + 8 * (kXStages + stage);
    if (++stage == kXStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

#ifndef SPINFER_WGMMA_FROM
#define SPINFER_WGMMA_FROM 32
#endif
template <int kN>
inline constexpr bool kUseWgmma = kN >= SPINFER_WGMMA_FROM;

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

/// acc += chunk · X. `slot` holds the unfolded chunk. The last wgmmas may still run on return.
///
/// Three pairs of tiles are under way: one's table entries and one's values are being loaded while one is
/// assembled and multiplied. Behind the chunk the masks are zero, which loads what is there and moves
/// nothing.
template <int kN, int kWarps>
__device__ void multiply_chunk(const Problem& p, SharedMap<kN, kWarps>& shared, uint32_t slot, int blocks,
                               XStage& x, int lane, float (&acc)[kN / 2]) {
  using Multiplier = std::conditional_t<kUseWgmma<kN>, WarpgroupMultiplier<kN>, WarpMultiplier<kN>>;
  uint32_t rank;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(rank) : "r"(slot + lane));
  uint32_t masks = slot + kChunkRankBytes + 4 * lane;
  const auto mask_of = [&](int block) {
    return block < blocks ? load_shared(masks + block * kChunkRowBytes) : 0u;
  };
  StripDecoder decoder{p.factors, slot + kChunkRankBytes + blocks * kChunkRowBytes + 4 * rank};
  PairEntries entries[2];
  PairWindow window;
  const uint32_t first_mask = load_shared(masks);
  uint32_t next_mask = mask_of(1);
  decoder.load_entries(first_mask, 0, entries[0]);
  decoder.load_entries(first_mask, 1, entries[1]);
  decoder.load_window(entries[0], window);
  for (int begin = 0; begin < blocks; begin += kXBlocks<kN>) {
    const int end = min(begin + kXBlocks<kN>, blocks);
    Multiplier multiplier(ptx::shared_address(shared.x) + x.stage * uint32_t(sizeof(shared.x[0])), lane);
    x.wait();
#pragma unroll 1
    for (int block = begin; block < end; ++block) {
      const uint32_t mask = next_mask;
      next_mask = mask_of(block + 2);
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        PairWindow next;
        multiplier.load(pair);
        decoder.load_entries(mask, pair, entries[pair]);
        decoder.load_window(entries[1 - pair], next);
        uint32_t a[8];
        window.assemble(a);
        multiplier.multiply(acc, a, pair);
        if (kUseWgmma<kN> && pair == 0) x.let_go(lane);
        window = next;
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

/// Ends a run of units of one row block. If other blocks have units of it too, their sums meet in the
/// workspace: who comes last adds them in block order, so the result does not depend on who that is.
template <int kN, int kWarps>
__device__ void finish_row_block(const Problem& p, int row_block, int warp, int lane,
                                 const float (&acc)[kN / 2]) {
  const int strip = row_block * kWarps + warp;
  if (strip >= p.strips) return;
  ptx::wait_for_previous_grids();
  const int grid = int(gridDim.x), me = int(blockIdx.x);
  const int first = block_of(p.units, grid, row_block * p.shape.chunks);
  const int last = block_of(p.units, grid, (row_block + 1) * p.shape.chunks - 1);
  if (first == last) return store_rows<kN>(p, strip, lane, acc);
  const auto partial = [&](int block) {
    const bool is_first = first_unit(p.units, grid, block) / p.shape.chunks == row_block;
    return p.partials + ((int64_t(block) * 2 + !is_first) * kWarps + warp) * (kN / 8) * 32 + lane;
  };
  float4* mine = partial(me);
#pragma unroll
  for (int i = 0; i < kN / 8; ++i) {
    mine[i * 32] = make_float4(acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]);
  }
  __threadfence();
  __syncwarp();  // all lanes' sums are out before the ticket says so
  uint32_t ticket = 0;
  if (lane == 0) ticket = atomicAdd(&p.tickets[strip], 1u);
  if (__shfl_sync(~0u, ticket, 0) != uint32_t(last - first)) return;
  __threadfence();
  float sum[kN / 2] = {};
  for (int block = first; block <= last; ++block) {
    const float4* from = partial(block);
#pragma unroll
    for (int i = 0; i < kN / 8; ++i) {
      const float4 v = __ldcg(from + i * 32);
      sum[4 * i] += v.x;
      sum[4 * i + 1] += v.y;
      sum[4 * i + 2] += v.z;
      sum[4 * i + 3] += v.w;
    }
  }
  if (lane == 0) p.tickets[strip] = 0;
  store_rows<kN>(p, strip, lane, sum);
}

template <int kN, int kWarps>
__global__ void __launch_bounds__(kWarps * 32 + 32, 1)
    spmm_stream_kernel(const __grid_constant__ Problem p, const __grid_constant__ CUtensorMap x_map) {
  __shared__ NibbleEntry nibble_table[16];
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& shared = *reinterpret_cast<SharedMap<kN, kWarps>*>(raw);
  const int warp = __shfl_sync(~0u, int(threadIdx.x) / 32, 0);  // known to be uniform
  const int lane = int(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kXStages; ++i) {
      ptx::barrier_init(ptx::shared_address(&shared.x_full[i]), 1);
      ptx::barrier_init(ptx::shared_address(&shared.x_empty[i]), kWarps);
    }
    for (int i = 0; i < kWarps * kSpmmStages; ++i) {
      ptx::barrier_init(ptx::shared_address(&shared.chunk_full[0][i]),
                        32 + 1);  // the lanes' columns and the bulk
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
  if (warp == kWarps) return bring_x<kN, kWarps>(p, &x_map, shared, walk, end - begin, lane);

  const uint32_t slots = ptx::shared_address(shared.slots) + warp * kSpmmStages * p.slot_bytes;
  const uint32_t barriers = ptx::shared_address(shared.chunk_full[warp]);
  ChunkFetch fetch(p, walk, row_block * kWarps + warp, end - begin, lane);
  for (int i = 0; i < kSpmmStages; ++i) {
    fetch.next<kWarps>(p, slots + i * p.slot_bytes, barriers + 8 * i, lane);
  }

  XStage x{ptx::shared_address(shared.x_full)};
  int stage = 0;
  uint32_t parity = 0;
  float acc[kN / 2] = {};
  for (int unit = begin; unit < end; ++unit) {
    const int blocks = walk.blocks(p);
    // Warpgroups whose 64 rows lie behind the matrix only let X pass.
    if (row_block * kWarps + warp < p.strips) {
      const uint32_t slot = slots + stage * p.slot_bytes;
      ptx::barrier_wait(barriers + 8 * stage, parity);
      multiply_chunk<kN, kWarps>(p, shared, slot, blocks, x, lane, acc);
      ptx::fence_async_proxy();  // our reads of the slot before the bulk copy that refills it
      __syncwarp();
      fetch.next<kWarps>(p, slot, barriers + 8 * stage, lane);
      if (++stage == kSpmmStages) {
        stage = 0;
        parity ^= 1;
      }
    } else {
#pragma unroll 1
      for (int block = 0; block < blocks; block += kXBlocks<kN>) {
        x.wait();
        x.let_go(lane);
        x.next();
      }
    }
    if (walk.next(p) || unit + 1 == end) {
      if (kUseWgmma<kN>) ptx::wgmma_wait<0>();
      finish_row_block<kN, kWarps>(p, row_block, warp, lane, acc);
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) acc[i] = 0.0f;
      ++row_block;
    }
  }
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
  config.blockDim = dim3(unsigned(kWarps * 32 + 32));
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
using WidestMap = SharedMap<kN, 16>;
template <int kN>
constexpr int slots_begin = offsetof(WidestMap<kN>, slots);
static_assert(slots_begin<8> + kSlotOverrun <= spmm_fixed_bytes(8));
static_assert(slots_begin<16> + kSlotOverrun <= spmm_fixed_bytes(16));
static_assert(slots_begin<32> + kSlotOverrun <= spmm_fixed_bytes(32));
static_assert(slots_begin<64> + kSlotOverrun <= spmm_fixed_bytes(64));

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
  switch (plan.warps) {
    case 8:
      return launch_for_tokens<8>(p, plan, map, context.stream());
    case 12:
      return launch_for_tokens<12>(p, plan, map, context.stream());
    default:
      return launch_for_tokens<16>(p, plan, map, context.stream());
  }
}

}  // namespace spinfer::cuda
