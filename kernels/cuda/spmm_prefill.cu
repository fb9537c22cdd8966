// Fused prefill SpMM for Hopper: y[n][m] = act(W·x + b) + residual for many tokens, W as strip streams.
//
// Contract   any m, k, n ≥ 1 for which `plan_prefill` finds room; fp16 in and out, fp32 accumulation; the
//            reduction order is fixed by (m, k, n, GPU): bitwise the same from run to run.
// Why        decoding to a dense scratch first writes and reads 2·m·k bytes more. Here a lane's decoded
//            registers are wgmma's A operand as they are (the fragment of mma.m16n8k16 per warp), so the
//            dense weights never exist outside registers.
// Grid       clusters of two blocks, one block an SM: a warpgroup that brings what kGroups others multiply. A
//            cluster's tile is 128·kGroups rows × n_tile tokens: warpgroup w of block b owns rows
//            64·(kGroups·b + w) … +64, two strips, its warp i tier i % 2 of strip i / 2 (rows 16·i … +16
//            unless the matrix is paired).
// Step       32 columns: two TCTiles a warp are assembled, the values of the next two asked for, and two
//            wgmmas of 16 columns issued; then the step before must be done. The ring of X stages is
//            unrolled, so that stages, barriers and operand descriptors are constants or uniform registers; a
//            segment takes whole rounds of it (the last stages may be empty). A warp goes on to its next
//            chunk in the middle of this: nothing is drained between chunks.
// X          warp 0: n_tile × 32 columns a stage, 64-byte swizzle, by TMA; each block loads half of the
//            tokens and multicasts them to both, which halves the traffic of the L2.
// W          lane i of warp 1: the chunks of strip i, record and rows by one bulk copy each, a chunk ahead
//            (kPrefillSlots).
// Tiles      the last tiles (about one and a half a cluster) are dealt chunk by chunk (stream-K): the cluster
//            with a tile's first chunk adds the others' fp32 partial sums in cluster order and stores. The
//            rest come whole. An idle warp raises the flags of partial sums.
// Shared     [X stages][PrefillBarriers][chunk slots: strip, slot] (prefill_tile.h), sizes from the plan.
// Roofline   a step of two warpgroups takes 2·n_tile clocks of the tensor cores. A wgmma with its operand in
//            registers holds its warp until the one before has ended, so decoding overlaps only with the
//            other warpgroups' multiplications: a warpgroup's step lasts as long as its decoding (about 180
//            clocks), its own wgmmas and some 140 clocks of starting and waiting. The GPU is at its power
//            limit all the while, dense or not, at about 1.45 of 1.98 GHz.
// Measured   scripts/results/h200_linear_prefill.json, the table in linear_plan.cpp. Where the time goes at
//            12288², 50 % (scripts/results/h200_prefill_steps.json): a step takes 426 clocks at 128 tokens
//            (256 of the tensor cores; waiting for chunks 9, for X 3) and 635 at 256 (512; 11 and 45); start,
//            partial sums and output take 12 to 17 µs.
// Tried      what helped: the epilogue through movmatrix, and whole sectors of y at a time; asking for
//            X before decoding (barrier_test) rather than waiting after it; three warpgroups for 128 tokens;
//            two copies of the decoder's tables, so that they stay in ordinary registers; the unrolled ring
//            and undrained chunks; all the registers the producers can do without.
//            What did not (the same file): decoding between the wgmmas of a step; a wgmma a step; steps of 64
//            columns, for which the tensor cores wait longer; one warp for X and, paced, for chunks; chunks
//            by ordinary asynchronous copies instead of bulk copies; holding the second chunk back at the
//            start; two or four blocks of a cluster with the same rows, each decoding some of them into
//            shared memory for all (both operands of wgmma there); from 512 tokens on, one kernel that
//            decodes to a scratch and multiplies from it, by whole SMs each (clocks do not rise for the fewer
//            that multiply) or decoding by idle warps of all SMs: 0.86 at 2048 tokens, as the scratch, 0.91
//            and 0.94 where the tiles fill whole waves (12288², 8192×28672), less than the fused kernel
//            below. Dealing the last tiles by blocks of columns, so that shares are even but begin inside
//            chunks: on average 1 to 3 % slower, 5120×5120 up to 13 % ("dealt_by_blocks"). Leaving decoding
//            out gains little at 256 tokens, leaving out X or W a fifth: what arrives and what is multiplied
//            get in each other's way. Beside wgmmas at full rate, an instruction of a decoding warp takes a
//            clock or two of its scheduler's tensor core.
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
template <int kGroups>
struct Threads {
  static constexpr int kAll = 128 * (1 + kGroups);
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
template <int kN, int kGroups, int kStages>
class Consumer {
 public:
  __device__ Consumer(const Problem& p, const prefill::SharedMap& map, uint32_t tables, int cluster,
                      int block, int group)
      : p_(p),
        map_(map),
        tables_(DecodeTables::from_shared(tables)),
        cluster_(cluster),
        block_(block),
        group_(group),
        warp_(int(prefill::uniform(threadIdx.x / 32 % 4))),
        lane_(int(threadIdx.x % 32)),
        strip_(group * kGroupStrips + warp_ / kStripTiers),
        x_operand_(ptx::operand_address(map.x)),
        x_empty_(ptx::address_in_block(map.x_empty(0), uint32_t(lane_) % kPrefillClusterBlocks)) {}

  __device__ void run() {
    prefill::Schedule schedule(p_, cluster_);
    prefill::Segment segment;
    while (schedule.next(segment)) {
      const int rows = prefill::row_group(p_, segment.tile, block_, group_);
      if (!prefill::has_rows(p_, rows)) {
        skip(prefill::block_begin(p_, segment.end) - prefill::block_begin(p_, segment.begin));
        continue;
      }
      multiply(segment.begin, segment.end);
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
    for (; blocks > 0; blocks -= kStages / kBlockStages) skip_round(0);
  }

  /// Waits for the next chunk and goes to it.
  __device__ void enter_chunk(ChunkReader& reader, int chunk) {
    blocks_ = prefill::block_begin(p_, chunk + 1) - prefill::block_begin(p_, chunk);
    ptx::barrier_wait(map_.chunk_full(strip_, slot_.stage), slot_.phase);
    reader.enter(map_.slot(strip_, slot_.stage), blocks_);
  }
  /// This warp has read all of the chunk: when the other has too its slot may be filled anew.
  __device__ void leave_chunk(int slot) const {
    __syncwarp();  // all lanes have read the slot
    if (lane_ == 0) {
      ptx::fence_async_proxy();  // what lanes have read, before the bulk copy that overwrites it
      ptx::barrier_arrive(map_.chunk_empty(strip_, slot));
    }
  }

  __device__ void multiply(int chunk, int end) {
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) acc_[i] = 0;
    ChunkReader reader(tables_, lane_, warp_ % kStripTiers);
    uint32_t a[2][8];
    enter_chunk(reader, chunk);
    reader.load<0>();
    reader.load<1>();
    bool more = true, x_there = ptx::barrier_test(map_.x_full(0), x_phase_);
    bool first = true;  // nothing to release yet
    int done = 0;
    while (true) {
#pragma unroll
      for (int stage = 0; stage < kStages; ++stage) {
        const int pair = stage % kBlockStages;
        uint32_t(&now)[8] = a[stage % 2];
        // Tiles 2·pair and the next of a block are in the windows.
        int leaving = -1;
        reader.assemble<0>(now);
        reader.assemble<1>(now + 4);
        if (pair == 0) {
          reader.load<2>();
          reader.load<3>();
        } else {
          if (--blocks_ > 0) {
            reader.next_block();
          } else {
            leaving = slot_.stage;
            slot_.advance(kPrefillSlots);
            if (++chunk < end) {
              enter_chunk(reader, chunk);
            } else {
              reader.finish();
              more = false;
            }
          }
          reader.load<0>();
          reader.load<1>();
        }
        if (!x_there) ptx::barrier_wait(map_.x_full(stage), x_phase_);
        const uint32_t x = x_operand_ + uint32_t(stage * (prefill_stage_bytes(kN) / 16));
        ptx::wgmma_fence();
        ptx::wgmma<kN>(acc_, now, ptx::narrow_operand(x));
        ptx::wgmma<kN>(acc_, now + 4, ptx::narrow_operand(x + 2));  // 16 columns are 32 bytes
        ptx::wgmma_commit();
        if (stage + 1 == kStages) x_phase_ ^= 1;
        x_there = ptx::barrier_test(map_.x_full((stage + 1) % kStages), x_phase_);
        if (leaving >= 0) leave_chunk(leaving);
        ptx::wgmma_wait<1>();  // the stage before is done: its registers and its X may go
        if (stage > 0 || !first) release_stage((stage + kStages - 1) % kStages);
        if (pair == 1 && !more) {
          done = stage + 1;
          break;
        }
      }
      first = false;
      if (!more) break;
    }
    ptx::wgmma_wait<0>();
    release_stage(done - 1);
    if (done < kStages) skip_round(done);
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
  DecodeTables tables_;
  int cluster_, block_, group_, warp_, lane_;
  int strip_;                     ///< which of the block's
  uint32_t x_operand_, x_empty_;  ///< lanes 0 and 1: of stage 0 in that block of the cluster
  uint32_t x_phase_ = 0;
  prefill::Ring slot_;
  int blocks_ = 0;  ///< of the chunk, still to come
  float acc_[kN / 2];
};

template <int kN, int kGroups, int kStages>
__device__ void multiply(const Problem& p, const CUtensorMap* x) {
  // Twice, for odd and even lanes: of one place ptxas would know that all lanes read the same, put it into
  // uniform registers, and move it back wherever it is used.
  __shared__ __align__(16) unsigned char tables[2][sizeof(DecodeTables)];
  extern __shared__ __align__(1024) unsigned char shared[];
  const prefill::SharedMap map = prefill::SharedMap::make<kN, kStages>(shared, p);
  const int block = int(ptx::cluster_rank()), cluster = int(blockIdx.x) / kPrefillClusterBlocks;
  if (threadIdx.x < 2) *reinterpret_cast<DecodeTables*>(tables[threadIdx.x]) = DecodeTables{};
  if (threadIdx.x == 0) {
#pragma unroll 1
    for (int i = 0; i < kStages; ++i) {
      ptx::barrier_init(map.x_full(i), 1);
      ptx::barrier_init(map.x_empty(i), kPrefillClusterBlocks * kGroups * 4);
    }
#pragma unroll 1
    for (int i = 0; i < kGroups * kGroupStrips * kPrefillSlots; ++i) {
      ptx::barrier_init(map.chunk_full(0, i), 1);
      ptx::barrier_init(map.chunk_empty(0, i), kStripTiers);
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();  // the tables and this block's barriers
  ptx::cluster_arrive();
  ptx::let_next_grid_start();
  const int group = int(prefill::uniform(threadIdx.x / 128)) - 1;
  if (group < 0) {
    ptx::registers_down<Threads<kGroups>::kProducerRegisters>();
    const int warp = int(prefill::uniform(threadIdx.x / 32));
    if (warp == 1) prefill::feed_chunks(p, map, cluster, block);
    ptx::cluster_wait();  // the other block's barriers exist
    if (threadIdx.x == 0) prefill::feed_x<kN, kStages>(p, map, x, cluster, block);
    if (warp == 2) publish_partials(p, cluster, block);
    __syncwarp();
  } else {
    ptx::registers_up<Threads<kGroups>::kConsumerRegisters>();
    ptx::cluster_wait();  // the other block's barriers exist
    Consumer<kN, kGroups, kStages> consumer(p, map, ptx::shared_address(tables[threadIdx.x % 2]), cluster,
                                            block, group);
    consumer.run();
  }
  ptx::cluster_sync();  // the other block may still send to this one's shared memory
}

#endif

template <int kN, int kGroups, int kStages>
__global__ void __launch_bounds__(Threads<kGroups>::kAll, 1)
    prefill_kernel(const __grid_constant__ Problem p, const __grid_constant__ CUtensorMap x) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  multiply<kN, kGroups, kStages>(p, &x);
#else
  __trap();  // `can_run` never lets a GPU without sm_90a code get here
#endif
}

/// x with rows padded to a multiple of 8 halfs, as TMA wants them.
__global__ void pad_rows_kernel(const __half* x, int64_t k, int64_t padded_k, __half* out) {
  const int64_t col = int64_t(blockIdx.y) * blockDim.x + threadIdx.x, row = blockIdx.x;
  if (col < padded_k) out[row * padded_k + col] = col < k ? x[row * k + col] : __ushort_as_half(0);
}

template <int kN, int kGroups, int kStages>
void launch(const PrefillPlan& plan, const Problem& problem, const CUtensorMap& x, cudaStream_t stream) {
  const auto kernel = prefill_kernel<kN, kGroups, kStages>;
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
  config.blockDim = dim3(Threads<kGroups>::kAll);
  config.dynamicSmemBytes = size_t(plan.shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  SPINFER_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, problem, x));
}

using Launch = void (*)(const PrefillPlan&, const Problem&, const CUtensorMap&, cudaStream_t);
Launch launcher(const PrefillPlan& plan) {
  if (plan.n_tile == 256) return plan.stages == 6 ? launch<256, 2, 6> : launch<256, 2, 4>;
  if (plan.groups == 2) return plan.stages == 8 ? launch<128, 2, 8> : launch<128, 2, 4>;
  return plan.stages == 8 ? launch<128, 3, 8> : plan.stages == 6 ? launch<128, 3, 6> : launch<128, 3, 4>;
}

}  // namespace

void spmm_prefill(Context& context, const StripStream& w, const LinearArgs& args) {
  if (args.n == 0) return;
  const StripShape& shape = w.view.shape;
  const PrefillPlan plan = plan_prefill(shape, w.view.max_chunk_rows, args.n, context.facts());
  check(plan.runs(), "prefill {}×{}: a chunk of {} rows does not fit the kernel", shape.m, shape.k,
        w.view.max_chunk_rows);
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
  problem.groups = plan.groups;
  problem.tiles_n = plan.tiles_n;
  problem.clusters = plan.clusters;
  problem.whole_tiles = plan.whole_tiles;
  problem.stream_tiles = plan.stream_tiles;
  problem.slot_bytes = plan.slot_bytes;
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
  problem.flags = context.flags();
  problem.y = reinterpret_cast<__half*>(args.y);
  problem.epilogue = epilogue_of(args);
  CUtensorMap map{};
  const bool readable = make_activation_map(map, x, args.n, padded_k, kPrefillStageColumns,
                                            plan.n_tile / kPrefillClusterBlocks);
  check(readable, "prefill {}×{}: the copy of x cannot be read by TMA", shape.m, shape.k);
  launcher(plan)(plan, problem, map, context.stream());
}

}  // namespace spinfer::cuda
