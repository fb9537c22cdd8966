// The Hopper SpMM of the decode regime: y [n][m] = act(W·x + b) + residual, n ≤ 64, W as strip streams
// (sm_90a).
//
// Layout    kernels/format/strip_stream.h: strips of 16 rows, cut into chunks of some hundred columns; a
// lane's values are a
//           stream of its own, streams stand side by side, one bank each. X is [n][k] as it is, no packing.
// Grid      one block per SM, persistent. A unit is a chunk of every strip of a row block (8 or 12 strips);
// units are numbered
//           row block by row block, chunk by chunk, and block b has units [b·U/G, (b+1)·U/G).
// Warps     a warp multiplies one strip. Three more fetch chunks for them, one brings X: whatever is not
// decoding would
//           stand between two chunks otherwise.
// Lanes     lane l decodes rows l/4 and l/4 + 8, columns 2·(l%4) + {0, 1, 8, 9} of each TCTile: the A
// fragment of mma.m16n8k16
//           and of a warp's quarter of wgmma.m64nNk16. Sums are in the C fragment of either.
// Shared    SharedMap (spmm_shared.cuh): X stages, barriers, then two slots a warp, sized by the matrix's
// largest chunk. Pipeline  chunk: bulk copy of ranks, masks and whole rows, 8-byte cp.async for the ragged
// rows above, one mbarrier; slot
//           refilled when its warp is through. X: bulk tensor copies on an mbarrier ring. Inside a chunk
//           three pairs of tiles are under way (StripCursor). n ≤ 16: mma.sync with ldmatrix, warps need not
//           meet; n > 16: wgmma, X is read by the tensor cores. Weights stream before griddepcontrol.wait; X,
//           residual, y and workspace are touched after it.
// Split     a row block's sums are added in block order by whoever comes last: bitwise reproducible, and
// since neither
//           cut nor grid depends on n, a token's result does not depend on the batch.
//
// Roofline  bytes 1.02 … 1.04 × the TCA-BME formula; 2·n flops a weight are far below the tensor cores'
// rate. At 4.4 TB/s
//           an SM may spend 16 / 13.5 / 10.6 clocks on a TCTile at 50 / 60 / 70 %. The inner loop has 33
//           instructions a tile at n = 8 (28 of them decode: 15 on the ALU pipe, which does one every other
//           clock), a chunk 190 besides, its fetch 130: 45 in all at 70 %, and 9.9 wavefronts (11.7 at n
//           = 16). Issue slots are 58 % busy (ncu, n = 8, 70 %).
// Measured  scripts/results/h200_linear_large.json, h200_linear_small.json: one H200, weights cold, ratio to
// the better of
//           cublasGemmEx and autotuned cublasLt in the same run, geometric mean of nine matrices from
//           13824×5120 to 28672×8192:
//             zeros   n = 1   8      16     32     64
//             40 %    1.30   1.30   1.17   1.06   0.87
//             50 %    1.38   1.40   1.23   1.10   0.90
//             60 %    1.47   1.47   1.31   1.18   0.96
//             70 %    1.56   1.55   1.37   1.22   1.01
//           (40 %: with chunks of four blocks, 4.3 % over the formula's bytes. The plan has since kept to 4 %
//           with eight warps and chunks of six or seven; an earlier run with those had 1.28, 1.21, 1.05, 0.84
//           from n = 8 on.) 4096×4096 at 50 %: 11.3 µs at n = 8, 1.13 ×, but 0.8 × at n = 32.
// Limits    at 50 %, n = 8 three quarters of the byte floor, elsewhere less: the decoder binds. 3 to 6 µs a
// launch are first
//           loads, uneven units and the split (most of a 4096×4096); at n = 64 X is 48 % more bytes to an SM.
//
// What was tried (12288×12288, 70 %, n = 8 unless said; µs before → after):
//   divisions by the chunk count replaced by a running remainder; warp number through
//   shfl (uniform registers: half the registers, no R2UR); 50 %                       71.8 → 67.5
//   decode loads started a tile ahead; 50 %                                           67.5 → 66.4
//   64-bit table entries (count and full mask beside the selectors) instead of popc,
//   szext and 32-bit entries: 34 → 28 instructions a tile, 2 more wavefronts          59.4 → 53.7
//   mma.sync instead of wgmma at n = 8; directory words kept out of uniform registers 53.7 → 48.6
//   fetch warps                                                                       49.9 → 44.8
//   wgmma instead of mma.sync, 50 %: n = 16 nothing, n = 32  70.4 → 64.5, n = 64      93.1 → 79.4
//   two strips a warp, 8 warps (shared X fragments, 10 % fewer instructions)          49.9 → 57.6, worse:
//   fewer warps 16 warps, chunks two thirds as long                                               48.6
//   → 53.0, worse table entries loaded two pairs ahead (50 %)                                       49.6
//   → 50.6, worse fence.proxy.async in the reading warp instead of the fetching one; nanosleep      nothing
//   three slots for two warps in turns (longer chunks): n = 16 4 % faster, n = 32 5 % slower; it hung on one
//   matrix and was dropped
// Next: pairs of blocks that share X by multicast for n = 64; fewer instructions between two chunks.
#include <algorithm>
#include <type_traits>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/spmm.h"
#include "kernels/cuda/spmm_fetch.cuh"
#include "kernels/cuda/tensor_map.h"

namespace spinfer::cuda {
namespace {

using namespace spmm;

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
    __syncwarp();  // all lanes have read X
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
