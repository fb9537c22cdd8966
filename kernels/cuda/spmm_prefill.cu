// Fused prefill SpMM for Hopper: y[n][m] = act(W·x + b) + residual for many tokens, W as strip streams.
//
// Contract   any m, k, n ≥ 1; fp16 in and out, fp32 accumulation; the reduction order is fixed by (m, k, n,
//            GPU): bitwise the same from run to run.
// Why        decoding to a dense scratch first writes and reads 2·m·k bytes more. Here a lane's decoded
//            registers are wgmma's A operand as they are (the fragment of mma.m16n8k16 per warp), so the
//            dense weights never exist outside registers.
// Grid       clusters of two blocks, one block an SM: a warpgroup that brings what the others multiply, two
//            for tiles of 256 tokens, three for 128 (groups below). A cluster's tile is 128·groups rows ×
//            n_tile tokens: warpgroup w of block b owns rows 64·(groups·b + w) … +64, two strips, its warp i
//            tier i % 2 of strip i / 2 (rows 16·i … +16 unless the matrix is paired).
// Step       32 columns: two TCTiles a warp are assembled, the values of the next two asked for, and two
//            wgmmas of 16 columns issued; then the step before must be done. The ring of X stages is
//            unrolled, so that stages, barriers and operand descriptors are constants or uniform registers; a
//            segment takes whole rounds of it (the last stages may be empty). A warp goes on to its next
//            chunk in the middle of this: nothing is drained between chunks.
// X          warp 0: n_tile × 64 columns a stage, 128-byte swizzle, by TMA; each block loads half of the
//            tokens and multicasts them to both, which halves the traffic of the L2.
// W          warp 1, a lane a strip: pieces of 16 rows by bulk copies into the strip's ring, as the heads'
//            events say when they come and go; another lane the records. As in the decode kernel
//            (spmm_stream.cu), but both tiers' warps must have let a piece go.
// Tiles      the last tiles (about one and a half a cluster) are dealt chunk by chunk (stream-K): the cluster
//            with a tile's first chunk adds the others' fp32 partial sums in cluster order and stores. The
//            rest come whole. An idle warp raises the flags of partial sums.
// Shared     [X stages][PrefillBarriers][PrefillStrip of each strip] (prefill_tile.h).
// Roofline   a step of two warpgroups takes 2·n_tile clocks of the tensor cores. A wgmma with its operand in
//            registers holds its warp until the one before has ended, so decoding overlaps only with the
//            other warpgroups' multiplications, and beside wgmmas at full rate an instruction of a decoding
//            warp takes a clock or two of its scheduler's tensor core. The GPU is at its power limit all the
//            while, dense or not, at about 1.45 of 1.98 GHz: what is saved is energy. A step has some 80
//            instructions a warp, 50 of them the decoder's.
// Measured   scripts/results/h200_linear_prefill.json, the table in linear_plan.cpp. Times of one GPU drift
//            by up to 15 % with its temperature and clock: compare by turns, and the mean of long runs.
// Tried      (scripts/results/h200_prefill_steps.json) what helped: the epilogue through movmatrix, and whole
//            sectors of y at a time; asking for X before decoding (barrier_test) rather than waiting after
//            it; three warpgroups for 128 tokens; the unrolled ring and undrained chunks; all the registers
//            the producers can do without. Then, 60 % zeros, 128 / 256 / 512 / 1024 tokens, time against the
//            kernel of before ("fewer_instructions"): the decoder with a table, entries of both halves in
//            registers of their own, one branch for all that is rare .92 / .98 / .98 / .97; X of 128 tokens
//            in stages of 64 columns .92; rings of pieces instead of slots for two whole chunks, which leave
//            room for more of X and always for three warpgroups .91 / .95 / .95 / .94.
//            What did not (the same file): decoding between the wgmmas of a step; a wgmma a step; steps of 64
//            columns, for which the tensor cores wait longer; one warp for X and, paced, for chunks; chunks
//            by ordinary asynchronous copies instead of bulk copies; holding the second chunk back at the
//            start; two or four blocks of a cluster with the same rows, each decoding some of them into
//            shared memory for all (both operands of wgmma there); from 512 tokens on, one kernel that
//            decodes to a scratch and multiplies from it, by whole SMs each (clocks do not rise for the fewer
//            that multiply) or decoding by idle warps of all SMs: 0.86 at 2048 tokens, as the scratch, 0.91
//            and 0.94 where the tiles fill whole waves (12288², 8192×28672), less than the fused kernel
//            below. Dealing the last tiles by blocks of columns, so that shares are even but begin inside
//            chunks: on average 1 to 3 % slower, 5120×5120 up to 13 % ("dealt_by_blocks"). X in blocks of
//            memory as its stages want them: no difference. All clusters of a shared tile adding up some of
//            its sums: 3 to 4 % slower, as none ends early and the next launch starts late. Stages of 64
//            columns where only two fit: 3 to 9 % slower. Pieces asked into the L2 ahead, or let go by as
//            many lanes: 1 to 3 % slower. Events without loops ("straight_events"): no difference.
// Checked    against the reference with memcheck, synccheck and racecheck clean, the last with slots used
// again
//            and let go as it follows (lanes_followed); and with random delays of both sides of the rings.
// Next       chunks of four blocks were 2 to 5 % faster still with two slots, where their heads weigh more:
//            what of that the rings lose by letting pieces go and waiting for them.
#include <cuda.h>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/prefill_decoder.cuh"
#include "kernels/cuda/prefill_epilogue.cuh"
#include "kernels/cuda/prefill_feed.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/spmm.h"
#include "kernels/cuda/spmm_prefill.h"
#include "kernels/cuda/tensor_map.h"

namespace spinfer::cuda {
namespace {

using prefill::Problem;

/// Threads: a producing warpgroup and kGroups that multiply. The launch gives all the same number of
/// registers; then the producers hand most of theirs over.
template <int kN>
struct Threads {
  static constexpr int kGroups = prefill_groups(kN), kAll = 128 * (1 + kGroups);
  static constexpr int kProducerRegisters = kGroups == 2 ? 40 : 56;
  static constexpr int kConsumerRegisters = kGroups == 2 ? 232 : 152;
  static_assert(128 * (kProducerRegisters + kGroups * kConsumerRegisters) <= 65536 / kAll / 8 * 8 * kAll);
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Named barriers: 1 … kMaxGroups a multiplying warpgroup's own, then those at which it tells an idle warp
// that its partial sums are written.
constexpr int kGivenBarrier = 1 + kPrefillMaxGroups, kGivenThreads = 128 + 32;

/// One warp: raises the flags of the partial sums that this block gives (its first segment's), once all of a
/// warpgroup's threads have written them. Waiting for the writes would cost the warpgroup a microsecond or
/// two.
__device__ void publish_partials(const Problem& p, int cluster, int block) {
  prefill::Schedule schedule(p, cluster);
  prefill::Segment segment;
  if (!schedule.next(segment) || segment.begin == 0) return;
  for (int group = 0; group < p.groups; ++group) {
    if (!prefill::has_rows(p, prefill::row_group(p, segment.tile, block, group))) continue;
    ptx::named_barrier(kGivenBarrier + group, kGivenThreads);
    if (threadIdx.x % 32 == 0)
      ptx::store_release(p.flags + prefill::partial_index(p, cluster, block, group), 1);
  }
}

/// One warpgroup's accumulators and what they go through.
template <int kN>
class Consumer {
  static constexpr int kStages = prefill_stages(kN);
  using Reader = TierReader<kRingRows>;

 public:
  __device__ Consumer(const Problem& p, const prefill::SharedMap& map, int cluster, int block, int group)
      : p_(p),
        map_(map),
        cluster_(cluster),
        block_(block),
        group_(group),
        warp_(int(prefill::uniform(threadIdx.x / 32 % 4))),
        lane_(int(threadIdx.x % 32)),
        strip_(group * kGroupStrips + warp_ / kStripTiers),
        x_operand_(ptx::operand_address(map.x)),
        x_empty_(ptx::address_in_block(map.x_empty(0), uint32_t(lane_) % kPrefillClusterBlocks)) {}

  __device__ void run(const NibbleTable& table) {
    prefill::Schedule schedule(p_, cluster_);
    prefill::Segment segment;
    while (schedule.next(segment)) {
      const int rows = prefill::row_group(p_, segment.tile, block_, group_);
      if (!prefill::has_rows(p_, rows)) {
        skip(prefill::block_begin(p_, segment.end) - prefill::block_begin(p_, segment.begin));
        continue;
      }
      multiply(table, segment.end - segment.begin);
      if (segment.begin > 0) {
        give_partial();
      } else {
        if (segment.end < p_.w.shape.chunks) take_partials(segment.tile);
        const int strip = rows * kGroupStrips + warp_ / kStripTiers;
        prefill::store_tile<kN>(p_, acc_, p_.w.shape.tier_row(strip, warp_ % kStripTiers),
                                segment.tile % p_.tiles_n * kN, lane_);
      }
    }
  }

 private:
  /// Tells both blocks' producers that this warp is done with the stage.
  __device__ void release_stage(int stage) const {
    if (lane_ < kPrefillClusterBlocks) ptx::barrier_arrive_remote(x_empty_ + uint32_t(stage) * 8);
  }
  /// Takes stages from `stage` to the end of the ring without a look at them.
  __device__ void skip_round(int stage) {
#pragma unroll 1
    for (; stage < kStages; ++stage) {
      ptx::barrier_wait(map_.x_full(stage), x_phase_);
      __syncwarp();
      release_stage(stage);
    }
    x_phase_ ^= 1;
  }

  __device__ void skip(int blocks) {
#pragma unroll 1
    for (; blocks > 0; blocks -= kStages) skip_round(0);
  }

  __device__ void await_pieces(uint32_t count) {
#pragma unroll 1
    for (; count > 0; --count, ++arrived_)
      ptx::barrier_wait(map_.piece_full(strip_) + 8 * (arrived_ % kRingPieces), arrived_ / kRingPieces & 1);
  }
  /// For this warp.
  __device__ bool arrives() const {
    return lane_ == 0 || p_.for_racecheck;
  }
  /// This warp has read all it needs of the next pieces: when the other tier's has too they may go.
  __device__ void give_up_pieces(uint32_t count) {
    if (count == 0) return;
    __syncwarp();  // all lanes have read them
#pragma unroll 1
    for (; count > 0; --count, ++given_up_)
      if (arrives()) ptx::barrier_arrive(map_.piece_empty(strip_) + 8 * (given_up_ % kRingPieces));
  }
  /// Waits for the next chunk's record and for the pieces of its first block, and goes to it.
  __device__ void enter_chunk(Reader& reader, bool first_of_segment) {
    const uint32_t slot = record_ & 1, record = map_.record(strip_, slot);
    ptx::barrier_wait(map_.record_full(strip_) + 8 * slot, record_ >> 1 & 1);
    uint32_t first_row, counts;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                 : "=r"(first_row), "=r"(counts)
                 : "r"(record + uint32_t(offsetof(ChunkHead, first_row))));
    blocks_ = int(counts >> 16 & 255u);
    event_ = record + uint32_t(offsetof(ChunkHead, events));
    const uint32_t piece = first_row / kPieceRows;
    if (first_of_segment) origin_ = given_up_ - piece;
    reader.enter(record, map_.ring(strip_), (piece + origin_) * (kPieceRows * 32));
    await_pieces((counts >> 24 & 15u) + (first_of_segment ? counts >> 28 : 0u));
  }
  /// All of the chunk has been read.
  __device__ void leave_chunk() {
    __syncwarp();  // by all lanes
    if (arrives()) ptx::barrier_arrive(map_.record_empty(strip_) + 8 * (record_ & 1));
    ++record_;
  }

  /// acc += half a block's tiles · X, of which `x` is the operand address; the half before is done then.
  __device__ void multiply_half(const uint32_t (&a)[8], uint32_t x) {
    ptx::wgmma_fence();
    ptx::wgmma<kN>(acc_, a, ptx::swizzled_operand(x));
    ptx::wgmma<kN>(acc_, a + 4, ptx::swizzled_operand(x + 2));  // 16 columns are 32 bytes
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();
  }

  /// acc = the next `chunks` chunks · X.
  __device__ void multiply(const NibbleTable& table, int chunks) {
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) acc_[i] = 0;
    Reader reader(table, lane_, warp_ % kStripTiers);
    uint32_t a[2][8];
    enter_chunk(reader, true);
    reader.template load_entries<0>();
    reader.template load_values<0>();
    bool x_there = ptx::barrier_test(map_.x_full(0), x_phase_);
    bool first = true;  // nothing to release yet
    int last = 0;       // stage
    while (true) {
#pragma unroll
      for (int stage = 0; stage < kStages; ++stage) {
        const uint32_t x = x_operand_ + uint32_t(stage * (prefill_stage_bytes(kN) / 16));
        uint32_t event;
        asm volatile("ld.shared.u8 %0, [%1];" : "=r"(event) : "r"(event_++));
        reader.template load_entries<1>();
        reader.template assemble<0>(a[0]);
        reader.template load_values<1>();
        if (!x_there) ptx::barrier_wait(map_.x_full(stage), x_phase_);
        multiply_half(a[0], x);
        // The half before is done: its registers may go, and X of the block before.
        if (stage > 0 || !first) release_stage((stage + kStages - 1) % kStages);
        reader.template load_entries<0>();
        reader.template assemble<1>(a[1]);
        --blocks_;
        if (event != 0 || blocks_ == 0) {
          give_up_pieces(event >> 4);
          await_pieces(event & 15u);
          if (blocks_ == 0) {
            leave_chunk();
            if (--chunks > 0) {
              enter_chunk(reader, false);
            } else {
              reader.finish();
            }
            reader.template load_entries<0>();
          }
        }
        reader.template load_values<0>();
        if (stage + 1 == kStages) x_phase_ ^= 1;
        x_there = ptx::barrier_test(map_.x_full((stage + 1) % kStages), x_phase_);
        multiply_half(a[1], x + 4);
        if (blocks_ == 0) {
          last = stage;
          break;
        }
      }
      first = false;
      if (blocks_ == 0) break;
    }
    give_up_pieces(arrived_ - given_up_);
    ptx::wgmma_wait<0>();
    release_stage(last);
    if (last + 1 < kStages) skip_round(last + 1);
  }

  __device__ int64_t partial_index(int cluster) const {
    return prefill::partial_index(p_, cluster, block_, group_);
  }
  __device__ float4* partial_of(int cluster) const {
    return reinterpret_cast<float4*>(p_.partials + partial_index(cluster) * (kGroupTile * kN)) +
           threadIdx.x % 128;
  }

  __device__ void give_partial() {
    float4* to = partial_of(cluster_);
#pragma unroll
    for (int i = 0; i < kN / 8; ++i)
      __stcg(to + i * 128, make_float4(acc_[4 * i], acc_[4 * i + 1], acc_[4 * i + 2], acc_[4 * i + 3]));
    ptx::named_barrier_arrive(kGivenBarrier + group_, kGivenThreads);
  }

  /// Adds the sums of the clusters that have the tile's later chunks, in their order.
  __device__ void take_partials(int tile) {
    const int end = (tile + 1) * p_.w.shape.chunks;
    for (int other = cluster_ + 1; other < p_.clusters && prefill::first_unit(p_, other) < end; ++other) {
      int* flag = p_.flags + partial_index(other);
      if (threadIdx.x % 128 == 0) {
        while (ptx::load_acquire(flag) == 0) __nanosleep(100);
        *flag = 0;  // ready for the next launch: nobody sets it again in this one
      }
      ptx::named_barrier(1 + group_, 128);  // the flag was seen
      const float4* from = partial_of(other);
#pragma unroll
      for (int i = 0; i < kN / 8; ++i) {
        const float4 v = __ldcg(from + i * 128);
        acc_[4 * i] += v.x;
        acc_[4 * i + 1] += v.y;
        acc_[4 * i + 2] += v.z;
        acc_[4 * i + 3] += v.w;
      }
    }
  }

  const Problem& p_;
  const prefill::SharedMap& map_;
  int cluster_, block_, group_, warp_, lane_;
  int strip_;                     ///< which of the block's
  uint32_t x_operand_, x_empty_;  ///< lanes 0 and 1: of stage 0 in that block of the cluster
  uint32_t x_phase_ = 0;
  uint32_t record_ = 0;                  ///< counts records, of which the lowest bits are slot and parity
  uint32_t arrived_ = 0, given_up_ = 0;  ///< pieces waited for and let go
  uint32_t origin_ = 0;                  ///< the strip's first piece, counted like those
  uint32_t event_ = 0;                   ///< shared address of the block's
  int blocks_ = 0;                       ///< of the chunk, still to come
  float acc_[kN / 2];
};

template <int kN>
__device__ void multiply(const Problem& p, const CUtensorMap* x) {
  constexpr int kStrips = prefill_groups(kN) * kGroupStrips;
  __shared__ __align__(256) NibbleTable table;
  extern __shared__ __align__(1024) unsigned char shared[];
  const auto map = prefill::SharedMap::make<kN>(shared);
  const int block = int(ptx::cluster_rank()), cluster = int(blockIdx.x) / kPrefillClusterBlocks;
  if (threadIdx.x / 32 == 1) table.fill(int(threadIdx.x % 32));
  if (threadIdx.x == 0) {
    const uint32_t readers = kStripTiers * lanes_followed(p.for_racecheck);
#pragma unroll 1
    for (int i = 0; i < prefill_stages(kN); ++i) {
      ptx::barrier_init(map.x_full(i), 1);
      ptx::barrier_init(map.x_empty(i), kPrefillClusterBlocks * prefill_groups(kN) * 4);
    }
#pragma unroll 1
    for (int i = 0; i < kStrips * kRingPieces; ++i) {
      ptx::barrier_init(map.piece_full(0) + 8 * i, 1);
      ptx::barrier_init(map.piece_empty(0) + 8 * i, readers);
    }
#pragma unroll 1
    for (int i = 0; i < kStrips * 2; ++i) {
      ptx::barrier_init(map.record_full(0) + 8 * i, 1);
      ptx::barrier_init(map.record_empty(0) + 8 * i, readers);
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();  // the table and this block's barriers
  ptx::cluster_arrive();
  ptx::let_next_grid_start();
  const int group = int(prefill::uniform(threadIdx.x / 128)) - 1;
  if (group < 0) {
    ptx::registers_down<Threads<kN>::kProducerRegisters>();
    const int warp = int(prefill::uniform(threadIdx.x / 32));
    if (warp == 1) {
      prefill::feed_strips(p, map, cluster, block);
    } else {
      ptx::cluster_wait();  // the other block's barriers exist
    }
    if (threadIdx.x == 0) prefill::feed_x<kN>(p, map, x, cluster, block);
    if (warp == 2) publish_partials(p, cluster, block);
    __syncwarp();
  } else {
    ptx::registers_up<Threads<kN>::kConsumerRegisters>();
    ptx::cluster_wait();  // the other block's barriers exist
    Consumer<kN> consumer(p, map, cluster, block, group);
    consumer.run(table);
  }
  ptx::cluster_sync();  // the other block may still send to this one's shared memory
}

#endif

template <int kN>
__global__ void __launch_bounds__(Threads<kN>::kAll, 1)
    prefill_kernel(const __grid_constant__ Problem p, const __grid_constant__ CUtensorMap x) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  multiply<kN>(p, &x);
#else
  __trap();  // `can_run` never lets a GPU without sm_90a code get here
#endif
}

/// x with rows padded to a multiple of 8 halfs, as TMA wants them.
__global__ void pad_rows_kernel(const __half* x, int64_t k, int64_t padded_k, __half* out) {
  const int64_t col = int64_t(blockIdx.y) * blockDim.x + threadIdx.x, row = blockIdx.x;
  if (col < padded_k) out[row * padded_k + col] = col < k ? x[row * k + col] : __ushort_as_half(0);
}

template <int kN>
void launch(const PrefillPlan& plan, const Problem& problem, const CUtensorMap& x, cudaStream_t stream) {
  const auto kernel = prefill_kernel<kN>;
  SPINFER_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_bytes));
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = kPrefillClusterBlocks;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(plan.clusters * kPrefillClusterBlocks));
  config.blockDim = dim3(Threads<kN>::kAll);
  config.dynamicSmemBytes = size_t(plan.shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  SPINFER_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, problem, x));
}

}  // namespace

void spmm_prefill(Context& context, const StripStream& w, const LinearArgs& args) {
  if (args.n == 0) return;
  const StripShape& shape = w.view.shape;
  const PrefillPlan plan = plan_prefill(shape, args.n, context.facts());
  const int64_t padded_k = (shape.k + 7) / 8 * 8;
  const bool pad = padded_k != shape.k || reinterpret_cast<uintptr_t>(args.x) % 16 != 0;
  const size_t partial_bytes = (plan.workspace_bytes + 255) / 256 * 256;
  auto* scratch = static_cast<char*>(
      context.workspace(partial_bytes + (pad ? size_t(padded_k) * size_t(args.n) * sizeof(Half) : 0)));
  const Half* x = args.x;
  if (pad) {
    x = reinterpret_cast<const Half*>(scratch + partial_bytes);
    pad_rows_kernel<<<dim3(unsigned(args.n), unsigned((padded_k + 255) / 256)), 256, 0, context.stream()>>>(
        reinterpret_cast<const __half*>(args.x), shape.k, padded_k,
        reinterpret_cast<__half*>(scratch + partial_bytes));
    SPINFER_LAUNCH_CHECK("pad_rows_kernel");
  }
  Problem problem{};
  problem.w = w.view;
  problem.n = args.n;
  problem.groups = prefill_groups(plan.n_tile);
  problem.tiles_n = plan.tiles_n;
  problem.clusters = plan.clusters;
  problem.whole_tiles = plan.whole_tiles;
  problem.stream_tiles = plan.stream_tiles;
  problem.record_bytes = shape.record_bytes();
  const auto addresses = reinterpret_cast<uintptr_t>(args.y) | reinterpret_cast<uintptr_t>(args.residual);
  problem.quads = shape.m % 4 == 0 && addresses % 8 == 0;
  const int units = plan.stream_tiles * shape.chunks;
  problem.units = units / plan.clusters;
  problem.extra_units = units % plan.clusters;
  problem.blocks = shape.blocks() / shape.chunks;
  const uint64_t left = uint64_t(shape.blocks() % shape.chunks);
  problem.block_fraction = left ? uint32_t((left << 32) / uint64_t(shape.chunks) + 1) : 0;
  problem.partials = reinterpret_cast<float*>(scratch);
  problem.for_racecheck = context.for_racecheck;
  problem.flags = context.flags();
  problem.y = reinterpret_cast<__half*>(args.y);
  problem.epilogue = epilogue_of(args);
  CUtensorMap map{};
  const bool readable = make_activation_map(map, x, args.n, padded_k, plan.n_tile / kPrefillClusterBlocks);
  check(readable, "prefill {}×{}: the copy of x cannot be read by TMA", shape.m, shape.k);
  (plan.n_tile == 256 ? launch<256> : launch<128>)(plan, problem, map, context.stream());
}

}  // namespace spinfer::cuda
