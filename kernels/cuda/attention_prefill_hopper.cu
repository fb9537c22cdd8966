// Prefill attention on Hopper (sm_90a): several new tokens a sequence, causal, over the paged cache; wgmma,
// after Shah et al., FlashAttention-3 (2024).
//
// Work: an item is (tile of kRows query tokens, sequence, q head). Persistent blocks, one an SM, take items
// in order, tiles with the longest context first; every second round of the grid goes backwards, so that a
// block with a heavy item gets a light one next.
//
// A block: a warpgroup of producers, whose warps each bring a half of K or of V, and two consumer warpgroups
// of 64 query rows each (row of a lane: warp·16 + lane/4, and 8 below).
//
// Shared memory, 1024-byte aligned, planes of 64 dims with 128-byte swizzle as the tensor maps write them:
//   q [plane][kRows][64]      one item's
//   k [stage][plane][kKeys][64]   kStages tiles; each cache block arrives as one box a plane
//   v [stage][plane][kKeys][64]
// Dims from head_dim to the end of a plane are zero (outside the map). Rows of v past the context are zeroed
// by the producer (what lies there in the cache is arbitrary, and 0 · NaN is NaN); rows of k need not be:
// their scores are masked.
//
// Pipeline of a warpgroup: the products S(j) = Q·K(j)ᵀ and O += P(j−1)·V(j−1) are queued together; the
// softmax of tile j runs when the first is done, under the second, and under the products of the other
// warpgroup: two named barriers let the warpgroups queue their products in turn.
//
// Softmax: keys in tiles of kKeys from key 0 on, whatever chunk or batch a row is in; tiles a row may not see
// leave it unchanged bit for bit. Weights are rounded to fp16 for the second product.
//
// Flops: 4·head_dim a (query, key) pair; cuBLAS reaches 790 TFLOP/s on dense fp16.
// Measured on an H200 (scripts/results/h200_ops.json), causal: 4096 tokens, 32 heads of 128: 541 TFLOP/s;
// with 8 kv heads 563; 2048 tokens, 40 heads 448; the last 512 of 8192 tokens 583; 4096 tokens with head_dim
// 64, 80, 96: 380, 411, 457. Decisive were four producer warps, not one (a box is 2 KB, a tile 32 of them),
// and that the softmax stays before the wait for P·V; the turns of the warpgroups bring a little. Short
// prompts are bound by memory and by the start of an item: 16 × 256 tokens 134 TFLOP/s.
//
// Limits: head_dim a multiple of 8 up to 128, block size a power of two, at least 16.
#include <cuda.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/ptx_attention.cuh"
#include "kernels/cuda/tensor_map.h"

namespace spinfer::cuda {
namespace {

constexpr int kConsumers = 2, kThreads = (1 + kConsumers) * 128;
constexpr int kRows = kConsumers * 64;  // query tokens an item
constexpr int kKeys = 128;              // keys a tile
constexpr int kStages = 2;
constexpr int kCacheRows = 16;  // rows a box of the cache has: the smallest block
constexpr int kPlaneBytes = kKeys * 128;
static_assert(kRows == kKeys);

template <int kDim>
struct SharedTiles {
  static constexpr int kPlanes = (kDim + 63) / 64;
  unsigned char q[kPlanes][kPlaneBytes];
  unsigned char k[kStages][kPlanes][kPlaneBytes];
  unsigned char v[kStages][kPlanes][kPlaneBytes];
  uint64_t q_full[kConsumers], q_empty[kConsumers];
  uint64_t k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
  uint64_t tail[2];  ///< the last rows of a half of v have arrived, those behind may be zeroed
};

struct Maps {
  CUtensorMap q, k, v;
};

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// One item.
struct Work {
  int sequence, head, first_row;
  int begin, queries, context;  ///< of the sequence

  /// Position of the item's first row.
  __device__ int position() const { return context - queries + first_row; }
  __device__ int tiles() const { return (min(position() + kRows, context) + kKeys - 1) / kKeys; }
};

/// The items of this block, one after the other. A warp looks at 32 at once, so those that do not exist
/// (shorter sequences than the longest) cost little. Every warp of a block has its own, at the same place.
class WorkList {
 public:
  __device__ WorkList(const AttentionTask& t, int row_tiles, int sequences)
      : t_(t), row_tiles_(row_tiles), per_tile_(sequences * t.q_heads) {}

  __device__ bool next(Work& work) {
    while (found_ == 0) {
      round_ += 32;
      if (round_ > 0 && int64_t{round_} * int(gridDim.x) >= int64_t{row_tiles_} * per_tile_) return false;
      Work candidate;
      found_ = __ballot_sync(~0u, at(round_ + int(threadIdx.x) % 32, candidate));
    }
    const int lane = __ffs(int(found_)) - 1;
    found_ &= found_ - 1;
    at(round_ + lane, work);
    return true;
  }

 private:
  __device__ bool at(int round, Work& w) const {
    const int grid = int(gridDim.x), place = int(blockIdx.x);
    const int64_t item = int64_t{round} * grid + (round % 2 ? grid - 1 - place : place);
    if (item >= int64_t{row_tiles_} * per_tile_) return false;
    const int in_tile = int(item % per_tile_);
    w.first_row = (row_tiles_ - 1 - int(item / per_tile_)) * kRows;
    w.sequence = in_tile / t_.q_heads;
    w.head = in_tile % t_.q_heads;
    w.begin = t_.query_start[w.sequence];
    w.queries = t_.query_start[w.sequence + 1] - w.begin;
    w.context = t_.context_len[w.sequence];
    return w.queries >= t_.min_queries && w.queries <= t_.max_queries && w.first_row < w.queries &&
           w.context > 0;
  }

  const AttentionTask& t_;
  int row_tiles_, per_tile_;
  int round_ = -32;
  uint32_t found_ = 0;
};

/// Counts the passes through a ring of `kStages`.
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

/// One of the four producer warps: two bring the halves of each K tile, two those of each V tile (a box holds
/// but 2 KB; one warp for all was slower than the products). The first brings Q too.
template <int kDim>
class Producer {
  using Tiles = SharedTiles<kDim>;
  static constexpr int kHalf = kKeys / 2, kBoxes = kHalf / kCacheRows;

 public:
  __device__ Producer(Tiles& s, const AttentionTask& t, const Maps& maps, int warp)
      : s_(s), t_(t), maps_(maps), values_(warp >= 2), half_(warp % 2) {}

  __device__ void run(WorkList list) {
    Work work;
    uint32_t q_parity = 1;
    while (list.next(work)) {
      if (!values_ && half_ == 0) {
        for (int c = 0; c < kConsumers; ++c) bring_queries(work, c, q_parity);
        q_parity ^= 1;
      }
      const int tiles = work.tiles();
      const int32_t* blocks = t_.block_table + int64_t{work.sequence} * t_.max_blocks;
      int32_t ids = 0;  // of this half of eight tiles, four a tile
      for (int tile = 0; tile < tiles; ++tile) {
        if (tile % 8 == 0) {
          const int key = (tile + lane() / kBoxes) * kKeys + half_ * kHalf + lane() % kBoxes * kCacheRows;
          ids = key < work.context ? blocks[key >> t_.block_shift] : 0;
        }
        bring_half(work, tile, ids);
      }
    }
  }

 private:
  __device__ static int lane() { return int(threadIdx.x) % 32; }

  __device__ void bring_queries(const Work& work, int consumer, uint32_t parity) {
    const uint32_t full = ptx::shared_address(&s_.q_full[consumer]);
    ptx::barrier_wait(ptx::shared_address(&s_.q_empty[consumer]), parity);
    if (lane() == 0) {
      ptx::barrier_arrive_expect(full, Tiles::kPlanes * 64 * 128);
      for (int p = 0; p < Tiles::kPlanes; ++p) {
        ptx::copy_box_3d(ptx::shared_address(&s_.q[p][consumer * 64 * 128]), &maps_.q, p * 64, work.head,
                         work.begin + work.first_row + consumer * 64, full);
      }
    }
    __syncwarp();
  }

  /// This warp's half of a tile: as many boxes as hold tokens of the context.
  __device__ void bring_half(const Work& work, int tile, int32_t ids) {
    auto& target = (values_ ? s_.v : s_.k)[ring_.stage];
    const uint32_t full = ptx::shared_address(&(values_ ? s_.v_full : s_.k_full)[ring_.stage]);
    const uint32_t empty = ptx::shared_address(&(values_ ? s_.v_empty : s_.k_empty)[ring_.stage]);
    const int first = tile * kKeys + half_ * kHalf, left = max(0, work.context - first);
    const int boxes = min(kBoxes, (left + kCacheRows - 1) / kCacheRows);
    const bool zeroes = values_ && left < kHalf;
    const uint32_t arrival = zeroes ? ptx::shared_address(&s_.tail[half_]) : full;
    int32_t slices[kBoxes];
#pragma unroll
    for (int i = 0; i < kBoxes; ++i)
      slices[i] =
          __shfl_sync(~0u, ids, tile % 8 * kBoxes + i) * t_.kv_heads + work.head / (t_.q_heads / t_.kv_heads);
    ptx::barrier_wait(empty, ring_.parity ^ 1);
    if (lane() == 0) {
      const CUtensorMap* map = values_ ? &maps_.v : &maps_.k;
      ptx::barrier_arrive_expect(arrival, uint32_t(boxes * Tiles::kPlanes * kCacheRows * 128));
#pragma unroll
      for (int i = 0; i < kBoxes; ++i) {
        if (i >= boxes) break;
        const int row = half_ * kHalf + i * kCacheRows, key = first + i * kCacheRows;
#pragma unroll
        for (int p = 0; p < Tiles::kPlanes; ++p)
          ptx::copy_box_3d(ptx::shared_address(&target[p][row * 128]), map, p * 64, key & (t_.block_size - 1),
                           slices[i], arrival);
      }
    }
    __syncwarp();
    if (zeroes) zero_tail(target, left, arrival, full);
    ring_.advance();
  }

  /// Rows of V from `left` on in this half become zero, then the half is full.
  __device__ void zero_tail(unsigned char (&target)[Tiles::kPlanes][kPlaneBytes], int left, uint32_t arrival,
                            uint32_t full) {
    ptx::barrier_wait(arrival, tail_parity_);
    tail_parity_ ^= 1;
    for (int p = 0; p < Tiles::kPlanes; ++p)
      for (int i = left * 128 + lane() * 16; i < kHalf * 128; i += 32 * 16)
        *reinterpret_cast<uint4*>(&target[p][half_ * kHalf * 128 + i]) = make_uint4(0, 0, 0, 0);
    ptx::fence_async_proxy();
    __syncwarp();  // all lanes' zeros are in place
    if (lane() == 0) ptx::barrier_arrive(full);
  }

  Tiles& s_;
  const AttentionTask& t_;
  const Maps& maps_;
  bool values_;  ///< brings V, not K
  int half_;
  Ring ring_;
  uint32_t tail_parity_ = 0;
};

/// A warpgroup with 64 query rows. Accumulators: [8 columns][4]: a lane's rows r, r, r + 8, r + 8 and columns
/// 2·(lane % 4) + {0, 1}.
template <int kDim>
class Consumer {
  using Tiles = SharedTiles<kDim>;

 public:
  __device__ Consumer(Tiles& s, const AttentionTask& t, int index) : s_(s), t_(t), index_(index) {}

  __device__ void run(WorkList list) {
    Work work;
    uint32_t q_parity = 0;
    if (index_ == 1) pass_turn();  // the first goes first
    while (list.next(work)) {
      ptx::barrier_wait(ptx::shared_address(&s_.q_full[index_]), q_parity);
      q_parity ^= 1;
      attend(work);
      store(work);
    }
    if (index_ == 0) take_turn();  // as many arrivals as waits
  }

 private:
  __device__ static int lane() { return int(threadIdx.x) % 32; }
  __device__ int row() const { return index_ * 64 + int(threadIdx.x) % 128 / 32 * 16 + lane() / 4; }

  // The warpgroups queue their products in turn: barrier 1 + i is the turn of warpgroup i.
  __device__ void take_turn() const { ptx::named_barrier(1 + index_, kConsumers * 128); }
  __device__ void pass_turn() const { ptx::named_barrier_arrive(2 - index_, kConsumers * 128); }
  __device__ static void wait_for(uint64_t (&barriers)[kStages], const Ring& ring) {
    ptx::barrier_wait(ptx::shared_address(&barriers[ring.stage]), ring.parity);
  }
  __device__ static void release(uint64_t& barrier) {
    if (lane() == 0) ptx::barrier_arrive(ptx::shared_address(&barrier));
  }

  __device__ void queue_scores() {
    const uint32_t q = ptx::operand_address(ptx::shared_address(&s_.q[0][index_ * 64 * 128]));
    const uint32_t k = ptx::operand_address(ptx::shared_address(&s_.k[k_.stage][0][0]));
#pragma unroll
    for (int step = 0; step < (kDim + 15) / 16; ++step) {
      const uint32_t offset = (step / 4 * kPlaneBytes + step % 4 * 32) / 16;
      ptx::wgmma_shared_128(scores_, ptx::swizzled_operand(q + offset), ptx::swizzled_operand(k + offset),
                            step > 0);
    }
    ptx::wgmma_commit();
  }

  __device__ void queue_values() {
    const uint32_t v = ptx::shared_address(&s_.v[v_.stage][0][0]);
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step)
      ptx::wgmma_transposed<kDim>(out_, weights_[step],
                                  ptx::transposed_operand(v + uint32_t(step) * 16 * 128, kPlaneBytes));
    ptx::wgmma_commit();
  }

  __device__ void attend(const Work& work) {
    const int tiles = work.tiles(), position = work.position() + row();
    // Tiles from here on hold keys that some row of the warpgroup may not see.
    const int first_masked = (work.position() + index_ * 64 + 1) / kKeys;
#pragma unroll
    for (float& x : out_) x = 0;
    max_[0] = max_[1] = -INFINITY;
    sum_[0] = sum_[1] = 0;
    wait_for(s_.k_full, k_);
    take_turn();
    ptx::wgmma_fence();
    queue_scores();
    pass_turn();
    ptx::wgmma_wait<0>();
    finish_scores(0, first_masked, position);
    prepare_values();
    for (int tile = 1; tile < tiles; ++tile) {
      wait_for(s_.k_full, k_);
      take_turn();
      ptx::pin(scores_);
      ptx::pin(out_);
      ptx::wgmma_fence();
      queue_scores();
      wait_for(s_.v_full, v_);
      queue_values();
      pass_turn();
      ptx::wgmma_wait<1>();
      finish_scores(tile, first_masked, position);
      ptx::pin(scores_);
      // Full since long; but within a basic block ptxas would move the next wait up before the softmax.
      wait_for(s_.v_full, v_);
      finish_values();
      prepare_values();
    }
    release(s_.q_empty[index_]);
    wait_for(s_.v_full, v_);
    ptx::pin(out_);
    ptx::wgmma_fence();
    queue_values();
    finish_values();
  }

  /// The scores of a tile are there: its softmax. A P·V may be under way.
  __device__ void finish_scores(int tile, int first_masked, int position) {
    ptx::pin(scores_);
    release(s_.k_empty[k_.stage]);
    k_.advance();
    if (tile >= first_masked) mask(tile * kKeys, position);
    softmax();
  }

  /// Waits for the queued P·V and frees its stage.
  __device__ void finish_values() {
    ptx::wgmma_wait<0>();
    ptx::pin(out_);
    release(s_.v_empty[v_.stage]);
    v_.advance();
  }

  /// The softmax of the newest tile becomes the A operand of the second product, 16 keys a step; the
  /// accumulators are rescaled to its maxima.
  __device__ void prepare_values() {
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        weights_[step][i] = pack(scores_[8 * step + 2 * i], scores_[8 * step + 2 * i + 1]);
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) out_[i] *= rescale_[i / 2 % 2];
  }

  /// Scores outside the causal triangle become −∞. `position`: of this lane's first row.
  __device__ void mask(int first_key, int position) {
    const int limit = position - first_key - lane() % 4 * 2;
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i)
      if (i / 4 * 8 + i % 2 > limit + i / 2 % 2 * 8) scores_[i] = -INFINITY;
  }

  /// Scores become weights; maxima and sums take them in.
  __device__ void softmax() {
    const float scale = t_.scale * 1.4426950408889634f;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = scores_[2 * half];
#pragma unroll
      for (int i = 0; i < kKeys / 8; ++i)
        largest = fmaxf(largest, fmaxf(scores_[4 * i + 2 * half], scores_[4 * i + 2 * half + 1]));
      // Every row sees key 0, so the maximum is finite from the first tile on.
      const float max = fmaxf(max_[half], quad_max(largest) * scale);
      rescale_[half] = ptx::exp2_approx(max_[half] - max);
      max_[half] = max;
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kKeys / 8; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& score = scores_[4 * i + 2 * half + j];
          score = ptx::exp2_approx(score * scale - max);
          sum += score;
        }
      sum_[half] = sum_[half] * rescale_[half] + sum;
    }
  }

  __device__ void store(const Work& work) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float factor = 1.0f / quad_sum(sum_[half]);
      const int query = work.first_row + row() + half * 8;
      if (query >= work.queries) continue;
      __half* target =
          static_cast<__half*>(t_.out) + (int64_t{work.begin + query} * t_.q_heads + work.head) * t_.head_dim;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const int column = n * 8 + lane() % 4 * 2;
        if (column < t_.head_dim)
          *reinterpret_cast<__half2*>(target + column) =
              __floats2half2_rn(out_[4 * n + half * 2] * factor, out_[4 * n + half * 2 + 1] * factor);
      }
    }
  }

  Tiles& s_;
  const AttentionTask& t_;
  int index_;
  Ring k_, v_;
  float scores_[kKeys / 2];
  float out_[kDim / 2];
  uint32_t weights_[kKeys / 16][4];
  float rescale_[2];       ///< what sums before the newest tile must be multiplied by
  float max_[2], sum_[2];  ///< of rows r and r + 8; sums of this lane's keys only, until the end
};

#endif  // sm_90a

template <int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    attention_prefill_hopper_kernel(const __grid_constant__ AttentionTask t,
                                    const __grid_constant__ Maps maps, int row_tiles, int sequences) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& s = *reinterpret_cast<SharedTiles<kDim>*>(memory);
  let_successor_start();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kConsumers; ++i) {
      ptx::barrier_init(ptx::shared_address(&s.q_full[i]), 1);
      ptx::barrier_init(ptx::shared_address(&s.q_empty[i]), 4);
    }
    for (int i = 0; i < kStages; ++i) {
      ptx::barrier_init(ptx::shared_address(&s.k_full[i]), 2);
      ptx::barrier_init(ptx::shared_address(&s.v_full[i]), 2);
      ptx::barrier_init(ptx::shared_address(&s.k_empty[i]), kConsumers * 4);
      ptx::barrier_init(ptx::shared_address(&s.v_empty[i]), kConsumers * 4);
    }
    for (uint64_t& tail : s.tail) ptx::barrier_init(ptx::shared_address(&tail), 1);
    ptx::barrier_init_fence();
  }
  __syncthreads();  // the barriers are initialised
  wait_for_predecessor();
  const WorkList list(t, row_tiles, sequences);
  const int warpgroup = int(threadIdx.x) / 128;
  if (warpgroup == 0) {
    ptx::registers_down<40>();
    Producer<kDim>(s, t, maps, int(threadIdx.x) / 32).run(list);
  } else {
    ptx::registers_up<232>();
    Consumer<kDim>(s, t, warpgroup - 1).run(list);
  }
#else
  __trap();  // attention() asks for Hopper first
#endif
}

template <int kDim>
void run(Context& context, const AttentionTask& task, const Maps& maps, int sequences, int max_query_len) {
  constexpr size_t kShared = sizeof(SharedTiles<kDim>);
  SPINFER_CUDA_CHECK(cudaFuncSetAttribute(attention_prefill_hopper_kernel<kDim>,
                                          cudaFuncAttributeMaxDynamicSharedMemorySize, int(kShared)));
  const int row_tiles = (max_query_len + kRows - 1) / kRows;
  const int64_t items = int64_t{row_tiles} * sequences * task.q_heads;
  const int grid = int(std::min<int64_t>(items, context.facts().sm_count));
  launch(context, "attention_prefill", attention_prefill_hopper_kernel<kDim>,
         {dim3(unsigned(grid)), dim3(kThreads), kShared}, task, maps, row_tiles, sequences);
}

}  // namespace

void attention_prefill_hopper(Context& context, const AttentionTask& task, int sequences, int max_query_len,
                              int n) {
  const int64_t row = int64_t{task.head_dim} * 2, heads = task.q_heads + 2 * task.kv_heads;
  constexpr int64_t kAnyNumber = int64_t{1} << 31;  // the cache's size is its owner's affair
  Maps maps;
  maps.q = make_swizzled_map("attention queries", task.q, {task.head_dim, heads, n}, {row, heads * row},
                             {64, 1, 64});
  for (const auto& [map, cache] : {std::pair{&maps.k, task.k}, std::pair{&maps.v, task.v}}) {
    *map = make_swizzled_map("attention cache", cache, {task.head_dim, task.block_size, kAnyNumber},
                             {row, task.block_size * row}, {64, kCacheRows, 1});
  }
  if (task.head_dim <= 64) return run<64>(context, task, maps, sequences, max_query_len);
  if (task.head_dim <= 80) return run<80>(context, task, maps, sequences, max_query_len);
  if (task.head_dim <= 96) return run<96>(context, task, maps, sequences, max_query_len);
  run<128>(context, task, maps, sequences, max_query_len);
}

}  // namespace spinfer::cuda
