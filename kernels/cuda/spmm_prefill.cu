// Fused prefill SpMM for Hopper: y[n][m] = act(W·x + b) + residual for many tokens, W as strip streams.
//
// Contract   any m, k, n ≥ 1 for which `plan_prefill` finds room; fp16 in and out, fp32 accumulation; the
// reduction order
//            is fixed by (m, k, n, GPU): bitwise the same from run to run.
// Why        a prefill multiplication is bound by the tensor cores; decoding to a dense scratch first writes
// and reads
//            2·m·k bytes more. Here a lane's decoded registers are wgmma's A operand as they are (the
//            fragment of mma.m16n8k16 per warp), so the dense weights never exist outside registers.
// Grid       clusters of two blocks, one block an SM; 384 threads: warpgroup 0 brings what warpgroups 1 and 2
// multiply. A
//            cluster's tile is 256 rows × n_tile tokens: warpgroup 1 + w of block b owns rows 64·(2b + w) …
//            +64, its warp i the strip of 16 rows 16·i … +16. While one warpgroup decodes the other's wgmma
//            runs, and a warpgroup decodes block i + 1 while its own wgmma of block i runs.
// X          warp 0: n_tile × 64 columns a stage, 128-byte swizzle, by TMA; each block loads half of the
// tokens and
//            multicasts them to both: half the L2 traffic, without which the L2 (about 5.5 TB/s) would bind.
// W          warp 1 + w: the chunks of warpgroup 1 + w's four strips, rows by bulk copies, ragged ends by
// 8-byte
//            cp.async, into one slot a strip, refilled in halves (PrefillSlot).
// Tiles      the last tiles (about one and a half a cluster) are dealt chunk by chunk (stream-K): the cluster
// with a
//            tile's first chunk adds the others' fp32 partial sums in cluster order and stores. The rest come
//            whole.
// Shared     [X stages][chunk slots: strip, slot][PrefillTail] (prefill_tile.h), sizes from the plan.
// Roofline   a k16 step of both warpgroups takes 256 clocks of the tensor cores at n_tile 256, of shared
// memory 128 for X
//            and about 50 for decoding 8 TCTiles (6.3 wavefronts each), and about 80 of 256 issue slots a
//            scheduler.
// Measured   scripts/results/h200_linear_prefill.json: 0.37–0.56 of cuBLAS at 128 and 256 tokens, right
// everywhere but
//            far from its roofline; linear_plan.cpp takes it where it beats the scratch.
// Tried      µs on an H200, 28672×8192 at 50 % zeros, 128 / 256 tokens:
//              309 / 345  first version, chunks of 8 blocks
//              264 / 306  relaxed arrivals (at cluster scope a release is a MEMBAR.GPU)
//              237 / 288  a chunk's copies worked out before its slot is free
//              290 / 344  epilogue in a loop, slots refilled in halves; the layout now has chunks of 5 blocks
//            A chunk costs some 3–5 µs whatever its size: one warp feeds four strips, one after another.
//            Next: a feeding warp a strip, and a chunk's place loaded two chunks ahead.
#include <cuda.h>

#include <cstddef>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/prefill_decoder.cuh"
#include "kernels/cuda/prefill_tile.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/ptx_cluster.cuh"
#include "kernels/cuda/spmm.h"
#include "kernels/cuda/spmm_prefill.h"
#include "kernels/cuda/tensor_map.h"

namespace spinfer::cuda {
namespace {

constexpr int kThreads = 384;

struct PrefillParams {
  StripStreamView w;
  int n;
  int tiles_n, clusters, whole_tiles, stream_tiles;
  int units,
      extra_units;  ///< stream tiles' chunks a cluster has; the first `extra_units` clusters have one more
  int blocks;       ///< of a chunk, rounded down
  uint32_t block_fraction;  ///< what that leaves out, in 2^-32 of a block, rounded up
  PrefillSlot slot;
  int stages;
  bool vectors;     ///< rows of y and of the residual are 16-byte aligned
  float* partials;  ///< [cluster][block][warpgroup][64 · n_tile]
  int* flags;       ///< [cluster][block][warpgroup], zero between launches: 1 = partial sums are there
  __half* y;
  Epilogue epilogue;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kProducerRegisters = 56, kConsumerRegisters = 224;  // 128·56 + 256·224 = 384·168, the launch's

/// StripShape::block_begin without a division: chunk · blocks / chunks < 2^32 / chunks, so the rounding never
/// shows.
__device__ inline int block_begin(const PrefillParams& p, int chunk) {
  return p.blocks * chunk + int(__umulhi(uint32_t(chunk), p.block_fraction));
}

/// First of the stream tiles' units (a chunk of a tile) that `cluster` has.
__device__ inline int first_unit(const PrefillParams& p, int cluster) {
  return p.units * cluster + min(cluster, p.extra_units);
}

/// Chunks [begin, end) of a tile, for one cluster.
struct Segment {
  int tile;
  int begin, end;
};

/// A cluster's work in order: its share of the stream tiles, then its whole tiles.
class Schedule {
 public:
  __device__ Schedule(const PrefillParams& p, int cluster)
      : p_(p),
        unit_(first_unit(p, cluster)),
        end_(first_unit(p, cluster + 1)),
        whole_(p.stream_tiles + cluster) {}
  __device__ bool next(Segment& segment) {
    const int chunks = p_.w.shape.chunks;
    if (unit_ < end_) {
      segment.tile = int(unsigned(unit_) / unsigned(chunks));
      segment.begin = unit_ - segment.tile * chunks;
      segment.end = min(chunks, segment.begin + end_ - unit_);
      unit_ += segment.end - segment.begin;
      return true;
    }
    if (whole_ >= p_.stream_tiles + p_.whole_tiles) return false;
    segment = {whole_, 0, chunks};
    whole_ += p_.clusters;
    return true;
  }

 private:
  const PrefillParams& p_;
  int unit_, end_, whole_;
};

/// Keeps the compiler from computing a value anew wherever it is used: addresses of a cluster's shared memory
/// and thread numbers come from special registers, a third of the main loop's instructions otherwise.
template <class T>
__device__ inline T once(T value) {
  static_assert(sizeof(T) == 4);
  asm volatile("" : "+r"(value));
  return value;
}

/// Where things lie in this block's shared memory, as shared addresses.
struct SharedMap {
  uint32_t x, slots, tail;
  float* store;

  template <int kN>
  __device__ static SharedMap make(unsigned char* base, const PrefillParams& p) {
    const uint32_t begin = once(ptx::shared_address(base)), x = (begin + 1023) / 1024 * 1024;
    const uint32_t slots = x + uint32_t(p.stages * prefill_stage_bytes(kN));
    const uint32_t tail = slots + uint32_t(kPrefillWarps * p.slot.bytes());
    return {x, slots, tail, reinterpret_cast<PrefillTail*>(base + (tail - begin))->store[0]};
  }
  __device__ uint32_t selectors() const { return tail + uint32_t(offsetof(PrefillTail, selectors)); }
  __device__ uint32_t x_full(int stage) const {
    return tail + uint32_t(offsetof(PrefillTail, x_full)) + stage * 8;
  }
  __device__ uint32_t x_empty(int stage) const {
    return tail + uint32_t(offsetof(PrefillTail, x_empty)) + stage * 8;
  }
  __device__ uint32_t half_full(int warp, int half) const {
    return tail + uint32_t(offsetof(PrefillTail, half_full)) + (warp * 2 + half) * 8;
  }
  __device__ uint32_t half_empty(int warp, int half) const {
    return tail + uint32_t(offsetof(PrefillTail, half_empty)) + (warp * 2 + half) * 8;
  }
  /// Ranks and masks of chunks with this parity; mask words begin 128 bytes further.
  __device__ uint32_t masks(const PrefillParams& p, int warp, uint32_t parity) const {
    return slots + uint32_t(warp * p.slot.bytes()) + parity * uint32_t(p.slot.mask_bytes);
  }
  __device__ uint32_t rows(const PrefillParams& p, int warp) const {
    return slots + uint32_t(warp * p.slot.bytes() + 2 * p.slot.mask_bytes);
  }
};

/// The rows of 64 that a warpgroup owns in a tile; beyond the matrix it has nothing to multiply.
__device__ inline int row_group(const PrefillParams& p, int tile, int block, int group) {
  return tile / p.tiles_n * kPrefillClusterGroups + block * kPrefillConsumers + group;
}
__device__ inline bool has_rows(const PrefillParams& p, int row_group) {
  return int64_t(row_group) * 4 < p.w.shape.strips();
}

/// A position in a ring of stages or slots, and the parity of its turn.
struct Ring {
  int stage = 0;
  uint32_t phase = 0;
  __device__ void advance(int size) {
    if (++stage == size) {
      stage = 0;
      phase ^= 1;
    }
  }
};

/// One warp: the chunks of a warpgroup's four strips, in the order they are multiplied.
class ChunkFeed {
 public:
  __device__ ChunkFeed(const PrefillParams& p, const SharedMap& map, int cluster, int block, int group)
      : p_(p), map_(map), schedule_(p, cluster), block_(block), group_(group), lane_(int(threadIdx.x % 32)) {
    // Read once, or again soon by the clusters with the other tokens.
    policy_ = p.tiles_n == 1 ? ptx::evict_first_policy() : ptx::evict_normal_policy();
  }

  __device__ void run() {
    bool more = find_next();
    while (more) {
      Copy copies[4];
      head_ = uint32_t(unfolded_chunk_bytes(block_begin(p_, chunk_ + 1) - block_begin(p_, chunk_), 0));
#pragma unroll
      for (int i = 0; i < 4; ++i) copies[i] = describe(next_offset_[i], next_height_[i]);
      more = find_next();
      // All is known before a half is free: from then on every instruction counts, as the warps wait for
      // their rows.
#pragma unroll
      for (int i = 0; i < 4; ++i) copy_first_half(group_ * 4 + i, copies[i]);
#pragma unroll
      for (int i = 0; i < 4; ++i) copy_second_half(group_ * 4 + i, copies[i]);
      parity_ ^= 1;
    }
  }

 private:
  /// Finds the next chunk of the strips and loads where it lies and how its streams end.
  __device__ bool find_next() {
    while (chunk_ + 1 >= segment_.end) {
      if (!schedule_.next(segment_)) return false;
      chunk_ = segment_.begin - 1;
      const int rows = row_group(p_, segment_.tile, block_, group_);
      if (!has_rows(p_, rows)) segment_.end = segment_.begin;  // nothing to decode there
      entry_ = int64_t(rows) * 4 * p_.w.shape.chunks;
    }
    ++chunk_;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t entry = entry_ + i * p_.w.shape.chunks + chunk_;
      next_offset_[i] = __ldg(p_.w.offsets + entry);
      next_height_[i] = __ldg(&p_.w.heights[entry].row[lane_ / 2]);
    }
    if (lane_ < 4) prefetch(entry_ + lane_ * p_.w.shape.chunks + chunk_);
    return true;
  }

  /// A chunk on its way to the L2 while its slot is still in use.
  __device__ void prefetch(int64_t entry) {
    const uint32_t begin = __ldg(p_.w.offsets + entry);
    const int64_t end = entry + 1 < p_.w.shape.entries()
                            ? int64_t(__ldg(p_.w.offsets + entry + 1)) * kChunkAlign
                            : p_.w.data_bytes;
    ptx::prefetch_bulk(p_.w.data + int64_t(begin) * kChunkAlign,
                       uint32_t(end - int64_t(begin) * kChunkAlign));
  }

  /// One strip's chunk on its way to its slot. Lanes 2q and 2q + 1 bring the ragged end of column pair q.
  struct Copy {
    uint32_t offset;  ///< of the chunk, in units of kChunkAlign
    int rows;         ///< that all lanes have
    int height;       ///< of the lane's pair
    int before;       ///< ragged words of earlier pairs
  };
  __device__ Copy describe(uint32_t offset, int height) const {
    const int rows = __shfl_sync(~0u, height, 31), ragged = height - rows;
    int before = lane_ % 2 == 0 ? ragged : 0;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(~0u, before, d);
      if (lane_ >= d) before += other;
    }
    return {offset, rows, height, before - ragged};
  }
  __device__ const uint8_t* data_of(const Copy& c) const {
    return p_.w.data + int64_t(c.offset) * kChunkAlign;
  }
  __device__ void copy_first_half(int warp, const Copy& c) {
    const uint32_t barrier = map_.half_full(warp, 0);
    const uint32_t bytes = uint32_t(min(c.rows, p_.slot.split_rows) * kChunkRowBytes);
    ptx::barrier_wait(map_.half_empty(warp, 0), parity_ ^ 1);
    if (lane_ == 0) {
      ptx::barrier_arrive_expect(barrier, head_ + bytes);
      // Ranks end where the 128-byte row of masks begins.
      ptx::copy_bulk(map_.masks(p_, warp, parity_) + 128 - kChunkRankBytes, data_of(c), head_, barrier,
                     policy_);
      if (bytes) ptx::copy_bulk(map_.rows(p_, warp), data_of(c) + head_, bytes, barrier, policy_);
    }
    copy_ragged(warp, c, c.rows, min(c.height, p_.slot.split_rows));
    ptx::barrier_arrive_copies(barrier);
  }
  __device__ void copy_second_half(int warp, const Copy& c) {
    const uint32_t barrier = map_.half_full(warp, 1);
    const uint32_t skip = uint32_t(min(c.rows, p_.slot.split_rows) * kChunkRowBytes);
    const uint32_t bytes = uint32_t(c.rows * kChunkRowBytes) - skip;
    ptx::barrier_wait(map_.half_empty(warp, 1), parity_ ^ 1);
    if (lane_ == 0) {
      ptx::barrier_arrive_expect(barrier, bytes);
      if (bytes)
        ptx::copy_bulk(map_.rows(p_, warp) + skip, data_of(c) + head_ + skip, bytes, barrier, policy_);
    }
    copy_ragged(warp, c, max(c.rows, p_.slot.split_rows), c.height);
    ptx::barrier_arrive_copies(barrier);
  }
  /// Rows [begin, end) of the lane's pair, of those that not all lanes have.
  __device__ void copy_ragged(int warp, const Copy& c, int begin, int end) {
    const int first = begin + lane_ % 2;
    const uint8_t* from = data_of(c) + head_ + c.rows * kChunkRowBytes + (c.before + first - c.rows) * 8;
    uint32_t to = map_.rows(p_, warp) + uint32_t(first * kChunkRowBytes + lane_ / 2 * 8);
#pragma unroll 1
    for (int r = first; r < end; r += 2) {
      ptx::copy_async_8(to, from);
      to += 2 * kChunkRowBytes;
      from += 16;
    }
  }

  const PrefillParams& p_;
  const SharedMap& map_;
  Schedule schedule_;
  int block_, group_, lane_;
  uint64_t policy_;
  Segment segment_{0, 0, 0};
  int chunk_ = 0;
  int64_t entry_ = 0;  ///< of the first strip's chunk 0
  uint32_t next_offset_[4];
  int next_height_[4];
  uint32_t head_ = 0;    ///< bytes of the chunk's ranks and masks
  uint32_t parity_ = 0;  ///< of the chunk: its mask buffer, and its turn at the barriers
};

/// One thread: each block's half of every X tile, multicast to both.
template <int kN>
__device__ void produce(const PrefillParams& p, const SharedMap& map, const CUtensorMap* x, int cluster,
                        int block) {
  constexpr int kHalf = kN / kPrefillClusterBlocks;
  Schedule schedule(p, cluster);
  Segment segment;
  Ring ring;
  while (schedule.next(segment)) {
    const int token = segment.tile % p.tiles_n * kN + block * kHalf;
    const int end = block_begin(p, segment.end);
#pragma unroll 1
    for (int i = block_begin(p, segment.begin); i < end; ++i) {
      ptx::barrier_wait(map.x_empty(ring.stage), ring.phase ^ 1);
      ptx::barrier_arrive_expect(map.x_full(ring.stage), uint32_t(prefill_stage_bytes(kN)));
      const uint32_t to =
          map.x + uint32_t(ring.stage * prefill_stage_bytes(kN) + block * prefill_stage_bytes(kHalf));
      ptx::copy_box_multicast(to, x, i * kBlockColumns, token, map.x_full(ring.stage), 3);
      ring.advance(p.stages);
    }
  }
}

/// Tells both blocks' producers that this warp is done with the stage.
__device__ inline void release_stage(const SharedMap& map, int stage, int lane) {
  if (lane < kPrefillClusterBlocks) ptx::barrier_arrive_cluster(map.x_empty(stage), uint32_t(lane));
}

/// One warpgroup's accumulators and what they go through.
template <int kN>
class Consumer {
 public:
  __device__ Consumer(const PrefillParams& p, const SharedMap& map, int cluster, int block, int group)
      : p_(p),
        map_(map),
        cluster_(cluster),
        block_(block),
        group_(group),
        warp_(once(int(threadIdx.x / 32 % 4))),
        lane_(once(int(threadIdx.x % 32))),
        strip_(once(group * 4 + warp_)),
        decoder_(map.selectors()) {}

  __device__ void run() {
    Schedule schedule(p_, cluster_);
    Segment segment;
    while (schedule.next(segment)) {
      const int blocks = block_begin(p_, segment.end) - block_begin(p_, segment.begin);
      const int rows = row_group(p_, segment.tile, block_, group_);
      if (!has_rows(p_, rows)) {
        skip(blocks);
        continue;
      }
      multiply(segment.begin, blocks);
      if (segment.begin > 0) {
        give_partial();
      } else {
        if (segment.end < p_.w.shape.chunks) take_partials(segment.tile);
        store(rows, segment.tile % p_.tiles_n * kN);
      }
    }
  }

 private:
  __device__ void skip(int blocks) {
#pragma unroll 1
    for (int i = 0; i < blocks; ++i) {
      ptx::barrier_wait(map_.x_full(ring_.stage), ring_.phase);
      __syncwarp();
      release_stage(map_, ring_.stage, lane_);
      ring_.advance(p_.stages);
    }
  }

  __device__ void multiply(int chunk, int blocks) {
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) acc_[i] = 0;
    chunk_ = chunk - 1;
    chunk_blocks_ = 0;
    uint32_t even[16] = {}, odd[16] = {};
#pragma unroll 1
    for (int i = 0; i < blocks; i += 2) {
      step(even, odd, i == 0);
      if (i + 1 < blocks) step(odd, even, false);
    }
    ptx::wgmma_wait<0>();
    release_stage(map_, last_stage_, lane_);
  }

  /// Decodes the next block into `a` while the wgmmas that read `busy` run, then starts its own.
  __device__ void step(uint32_t (&a)[16], uint32_t (&busy)[16], bool first) {
    if (chunk_blocks_ == 0) open_chunk();
    if (!second_half_) await_second_half();
    const uint32_t mask = next_mask_;
    mask_ += chunk_blocks_ > 1 ? kChunkRowBytes : 0;
    next_mask_ = BlockDecoder::load(mask_);
    decoder_.block(mask, a);
    --chunk_blocks_;
    if (first_half_ && (chunk_blocks_ == 0 || past_first_half())) release_half(0);
    if (chunk_blocks_ == 0) close_chunk();
    ptx::barrier_wait(map_.x_full(ring_.stage), ring_.phase);
    const uint64_t x =
        ptx::swizzled_operand(ptx::operand_address(map_.x + uint32_t(ring_.stage * prefill_stage_bytes(kN))));
    ptx::wgmma_fence();
#pragma unroll
    for (int t = 0; t < 4; ++t)
      ptx::wgmma<kN>(acc_, a + 4 * t, x + uint64_t(2 * t));  // 16 columns are 32 bytes
    ptx::wgmma_commit();
    if (!first) {
      ptx::wgmma_wait<1>();
      // The registers of the finished wgmmas must not be reused before here.
#pragma unroll
      for (int i = 0; i < 16; ++i) asm volatile("" ::"r"(busy[i]));
      release_stage(map_, last_stage_, lane_);
    }
    last_stage_ = ring_.stage;
    ring_.advance(p_.stages);
  }

  __device__ void open_chunk() {
    ++chunk_;
    chunk_blocks_ = block_begin(p_, chunk_ + 1) - block_begin(p_, chunk_);
    ptx::barrier_wait(map_.half_full(strip_, 0), parity_);
    const uint32_t masks = map_.masks(p_, strip_, parity_) + 128;
    mask_ = masks + uint32_t(lane_) * 4;
    uint32_t rank;
    asm volatile("ld.shared.u8 %0, [%1];" : "=r"(rank) : "r"(masks - kChunkRankBytes + uint32_t(lane_)));
    decoder_.begin(map_.rows(p_, strip_) + rank * 4);
    next_mask_ = BlockDecoder::load(mask_);
    first_half_ = true;
    second_half_ = false;
  }
  /// Waits for the chunk's last rows if the next block may reach them: a block takes at most 16 rows, a
  /// padding half, and the window one row more.
  __device__ void await_second_half() {
    const unsigned highest = __reduce_max_sync(~0u, decoder_.row());
    if (int(highest) + 18 <= p_.slot.split_rows) return;
    ptx::barrier_wait(map_.half_full(strip_, 1), parity_);
    second_half_ = true;
  }
  /// Whether no lane will read the first rows again.
  __device__ bool past_first_half() const {
    return int(__reduce_min_sync(~0u, decoder_.row())) >= p_.slot.split_rows;
  }
  __device__ void release_half(int half) {
    ptx::fence_async_proxy();
    __syncwarp();  // all lanes have read it
    if (lane_ == 0) ptx::barrier_arrive(map_.half_empty(strip_, half));
    if (half == 0) first_half_ = false;
  }
  __device__ void close_chunk() {
    if (!second_half_)
      ptx::barrier_wait(map_.half_full(strip_, 1), parity_);  // sparse: none of it was needed
    release_half(1);
    parity_ ^= 1;
  }

  __device__ int64_t slot_of(int cluster) const {
    return (int64_t(cluster) * kPrefillClusterBlocks + block_) * kPrefillConsumers + group_;
  }
  __device__ float4* partial_of(int cluster) const {
    return reinterpret_cast<float4*>(p_.partials + slot_of(cluster) * (kGroupTile * kN)) + threadIdx.x % 128;
  }

  __device__ void give_partial() {
    float4* to = partial_of(cluster_);
#pragma unroll
    for (int i = 0; i < kN / 8; ++i)
      __stcg(to + i * 128, make_float4(acc_[4 * i], acc_[4 * i + 1], acc_[4 * i + 2], acc_[4 * i + 3]));
    __threadfence();
    ptx::named_barrier(1 + group_, 128);  // all threads' sums are visible before the flag
    if (threadIdx.x % 128 == 0) ptx::store_release(p_.flags + slot_of(cluster_), 1);
  }

  /// Adds the sums of the clusters that have the tile's later chunks, in their order.
  __device__ void take_partials(int tile) {
    const int end = (tile + 1) * p_.w.shape.chunks;
    for (int other = cluster_ + 1; other < p_.clusters && first_unit(p_, other) < end; ++other) {
      int* flag = p_.flags + slot_of(other);
      if (threadIdx.x % 128 == 0) {
        while (ptx::load_acquire(flag) == 0) __nanosleep(100);
        *flag = 0;  // ready for the next launch: nobody sets it again in this one
      }
      ptx::named_barrier(1 + group_, 128);  // the flag was seen
      __threadfence();
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

  /// Turns the tile in shared memory, 16 tokens at a time, and writes it as rows of tokens.
  __device__ void store(int rows, int first_token) {
    float* staging = map_.store + group_ * (kPrefillStoreTokens * kPrefillStoreStride);
    const int64_t top = int64_t(rows) * kGroupTile;
    const int row = warp_ * kStripRows + lane_ / 4;
    float bias[2] = {};
    if (p_.epilogue.bias) {
      if (top + row < p_.w.shape.m) bias[0] = __half2float(p_.epilogue.bias[top + row]);
      if (top + row + 8 < p_.w.shape.m) bias[1] = __half2float(p_.epilogue.bias[top + row + 8]);
    }
    float* to = staging + lane_ % 4 * 2 * kPrefillStoreStride + row;
#pragma unroll 1
    for (int slice = 0; slice < kN / kPrefillStoreTokens; ++slice) {
      const int token = first_token + slice * kPrefillStoreTokens;
      if (token >= p_.n) break;
        // Registers have no run-time index; unrolling all of the slice would repeat the activations' code 16
        // times.
#pragma unroll
      for (int i = 0; i < kN / kPrefillStoreTokens; ++i) {
        if (i != slice) continue;
#pragma unroll
        for (int j = 0; j < 8; ++j)  // j: octet of tokens, lower rows, odd token
          to[(j / 4 * 8 + j % 2) * kPrefillStoreStride + j / 2 % 2 * 8] = acc_[8 * i + j] + bias[j / 2 % 2];
      }
      ptx::named_barrier(1 + group_, 128);  // the slice is complete
      write_slice(staging, top, token);
      ptx::named_barrier(1 + group_, 128);  // nobody reads it any more
    }
  }

  /// Each thread eight rows of one token.
  __device__ void write_slice(float* staging, int64_t top, int first_token) {
    const int line = int(threadIdx.x % 128) / 8, part = int(threadIdx.x % 8) * 8, token = first_token + line;
    const int64_t m = p_.w.shape.m, row = top + part;
    if (token >= p_.n || row >= m) return;
    float* values = staging + line * kPrefillStoreStride + part;
    float lowest = -INFINITY;
    if (p_.epilogue.act == Activation::relu) {
      lowest = 0;
    } else if (p_.epilogue.act != Activation::none) {
#pragma unroll 1
      for (int j = 0; j < 8; ++j) values[j] = activate(values[j], p_.epilogue.act);  // rare: small, not fast
    }
    const int64_t index = int64_t(token) * m + row;
    if (p_.vectors && row + 8 <= m) {
      alignas(16) __half residual[8] = {}, out[8];
      if (p_.epilogue.residual)
        *reinterpret_cast<uint4*>(residual) = *reinterpret_cast<const uint4*>(p_.epilogue.residual + index);
#pragma unroll
      for (int j = 0; j < 8; ++j)
        out[j] = __float2half_rn((values[j] < lowest ? lowest : values[j]) + __half2float(residual[j]));
      *reinterpret_cast<uint4*>(p_.y + index) = *reinterpret_cast<const uint4*>(out);
      return;
    }
#pragma unroll 1
    for (int j = 0; j < 8 && row + j < m; ++j) {
      const float residual = p_.epilogue.residual ? __half2float(p_.epilogue.residual[index + j]) : 0.0f;
      p_.y[index + j] = __float2half_rn((values[j] < lowest ? lowest : values[j]) + residual);
    }
  }

  const PrefillParams& p_;
  const SharedMap& map_;
  int cluster_, block_, group_, warp_, lane_;
  int strip_;  ///< which of the block's
  BlockDecoder decoder_;
  Ring ring_;
  uint32_t parity_ = 0;                            ///< of the open chunk
  bool first_half_ = false, second_half_ = false;  ///< the open chunk's rows: not released yet; there
  int last_stage_ = 0;
  int chunk_ = 0, chunk_blocks_ = 0;  ///< the open chunk and its blocks still to decode
  uint32_t next_mask_ = 0;
  uint32_t mask_ = 0;  ///< shared address of the lane's next mask word
  float acc_[kN / 2];
};

template <int kN>
__device__ void prefill(const PrefillParams& p, const CUtensorMap* x) {
  extern __shared__ unsigned char shared[];
  const SharedMap map = SharedMap::make<kN>(shared, p);
  const int block = int(ptx::cluster_rank()), cluster = int(blockIdx.x) / kPrefillClusterBlocks;
  if (threadIdx.x < 16)
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(map.selectors() + threadIdx.x * 4),
                 "r"(nibble_selectors(threadIdx.x))
                 : "memory");
  if (threadIdx.x == 0) {
#pragma unroll 1
    for (int i = 0; i < p.stages; ++i) {
      ptx::barrier_init(map.x_full(i), 1);
      ptx::barrier_init(map.x_empty(i), kPrefillClusterBlocks * kPrefillWarps);
    }
#pragma unroll 1
    for (int i = 0; i < kPrefillWarps * 2; ++i) {
      ptx::barrier_init(map.half_full(i / 2, i % 2), 33);  // the bulk copies', and 32 lanes' own copies
      ptx::barrier_init(map.half_empty(i / 2, i % 2), 1);
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();
  ptx::cluster_sync();  // both blocks' barriers exist before anyone arrives at them from outside
  const int group = int(threadIdx.x) / 128 - 1;
  if (group < 0) {
    ptx::registers_down<kProducerRegisters>();
    const int warp = int(threadIdx.x) / 32;
    if (threadIdx.x == 0) produce<kN>(p, map, x, cluster, block);
    if (warp == 1 || warp == 2) ChunkFeed(p, map, cluster, block, warp - 1).run();
    __syncwarp();
  } else {
    ptx::registers_up<kConsumerRegisters>();
    Consumer<kN> consumer(p, map, cluster, block, group);
    consumer.run();
  }
  ptx::cluster_sync();  // the other block may still send to this one's shared memory
}

#endif

template <int kN>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_kernel(const __grid_constant__ PrefillParams p, const __grid_constant__ CUtensorMap x) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  prefill<kN>(p, &x);
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
void launch(const PrefillPlan& plan, const PrefillParams& params, const CUtensorMap& x, cudaStream_t stream) {
  SPINFER_CUDA_CHECK(cudaFuncSetAttribute(prefill_kernel<kN>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          plan.shared_bytes));
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = kPrefillClusterBlocks;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(plan.clusters * kPrefillClusterBlocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = size_t(plan.shared_bytes);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  SPINFER_CUDA_CHECK(cudaLaunchKernelEx(&config, prefill_kernel<kN>, params, x));
}

}  // namespace

void spmm_prefill(Context& context, const StripStream& w, const LinearArgs& args) {
  if (args.n == 0) return;
  const StripShape& shape = w.view.shape;
  const PrefillPlan plan = plan_prefill(shape, w.view.max_height, args.n, context.facts());
  check(plan.runs(), "prefill {}×{}: a chunk of {} rows does not fit the kernel", shape.m, shape.k,
        w.view.max_height);
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
  PrefillParams params{};
  params.w = w.view;
  params.n = args.n;
  params.tiles_n = plan.tiles_n;
  params.clusters = plan.clusters;
  params.whole_tiles = plan.whole_tiles;
  params.stream_tiles = plan.stream_tiles;
  params.slot = prefill_slot(shape, w.view.max_height);
  params.stages = plan.stages;
  const auto addresses = reinterpret_cast<uintptr_t>(args.y) | reinterpret_cast<uintptr_t>(args.residual);
  params.vectors = shape.m % 8 == 0 && addresses % 16 == 0;
  const int units = plan.stream_tiles * shape.chunks;
  params.units = units / plan.clusters;
  params.extra_units = units % plan.clusters;
  params.blocks = shape.blocks() / shape.chunks;
  const uint64_t left = uint64_t(shape.blocks() % shape.chunks);
  params.block_fraction = left ? uint32_t((left << 32) / uint64_t(shape.chunks) + 1) : 0;
  params.partials = reinterpret_cast<float*>(scratch);
  params.flags = context.flags();
  params.y = reinterpret_cast<__half*>(args.y);
  params.epilogue = epilogue_of(args);
  CUtensorMap map{};
  const bool readable =
      make_activation_map(map, x, args.n, padded_k, kBlockColumns, plan.n_tile / kPrefillClusterBlocks);
  check(readable, "prefill {}×{}: the copy of x cannot be read by TMA", shape.m, shape.k);
  if (plan.n_tile == 128) {
    launch<128>(plan, params, map, context.stream());
  } else {
    launch<256>(plan, params, map, context.stream());
  }
}

}  // namespace spinfer::cuda
