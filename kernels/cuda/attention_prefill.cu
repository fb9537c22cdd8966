// Prefill attention: several new tokens a sequence, causal, over the paged cache, on tensor cores (mma.sync
// m16n8k16, fp16 in, fp32 accumulated), after Dao, FlashAttention-2 (2023).
//
// Grid: (tiles of kRows query tokens, q heads, sequences); the tile with the longest context first. A block
// of four warps; a warp owns 32 query rows, so that each K and V fragment it loads serves two products.
//
// Shared memory: Q [kRows][kStride], then two stages of K [kKeys][kStride] and V [kKeys][kStride]; kStride =
// head + 8 halves puts the eight rows of an ldmatrix into different banks. Columns between head_dim and kDim
// are zero.
//
// Pipeline: cp.async of tile i + 1 runs under the arithmetic of tile i; keys are gathered by the block table,
// keys past the context become zero (what lies in their memory is never read).
//
// Softmax: a row's keys come in tiles of kKeys from key 0 on, whatever chunk or batch the row is in; tiles a
// row may not see leave it unchanged bit for bit. Weights are rounded to fp16 for the second product.
//
// On sm_90a attention_prefill_hopper.cu serves instead: wgmma does more than mma.sync can.
//
// Limits: head_dim a multiple of 8 up to 128, block size a power of two.
#include <cuda_fp16.h>

#include "kernels/check.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace spinfer::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32;
constexpr int kTiles = 2;                    // of 16 rows a warp
constexpr int kRows = kWarps * kTiles * 16;  // query tokens a block
constexpr int kKeys = 64;                    // keys a stage

/// Four 8×8 fp16 matrices, each transposed; lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void load_matrix_x4_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(ptx::shared_address(row))
               : "memory");
}

template <int kDim>
struct SharedTiles {
  static constexpr int kHeadDim = kDim;
  static constexpr int kStride = kDim + 8;
  __half q[kRows][kStride];
  __half k[2][kKeys][kStride];
  __half v[2][kKeys][kStride];
};

/// The sequence and head a block works on.
struct Block {
  int context, queries, first_row, kv_head;
  const __half* q;  ///< head's part of the sequence's first new token
  int64_t q_stride;
  const int32_t* blocks;
};

template <int kDim>
__device__ void load_queries(SharedTiles<kDim>& s, const AttentionTask& t, const Block& b) {
  constexpr int kChunks = kDim / kVec;
  for (int i = int(threadIdx.x); i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, column = i % kChunks * kVec;
    const bool inside = b.first_row + row < b.queries && column < t.head_dim;
    const __half* source = inside ? b.q + (b.first_row + row) * b.q_stride + column : b.q;
    ptx::copy_async_16(&s.q[row][column], source, inside ? 16 : 0);
  }
}

template <int kDim>
__device__ void load_keys(SharedTiles<kDim>& s, const AttentionTask& t, const Block& b, int tile) {
  constexpr int kChunks = kDim / kVec;
  const int stage = tile % 2;
  for (int i = int(threadIdx.x); i < kKeys * kChunks; i += kThreads) {
    const int row = i / kChunks, column = i % kChunks * kVec, key = tile * kKeys + row;
    const bool inside = key < b.context && column < t.head_dim;
    int64_t offset = 0;
    if (inside) {
      const int64_t block = b.blocks[key >> t.block_shift];
      offset = ((block * t.kv_heads + b.kv_head) * t.block_size + (key & (t.block_size - 1))) * t.head_dim +
               column;
    }
    ptx::copy_async_16(&s.k[stage][row][column], static_cast<const __half*>(t.k) + offset, inside ? 16 : 0);
    ptx::copy_async_16(&s.v[stage][row][column], static_cast<const __half*>(t.v) + offset, inside ? 16 : 0);
  }
}

/// scores[m][n] = Q·Kᵀ of this warp's rows and the stage's keys.
template <int kDim>
__device__ inline void multiply_queries(const SharedTiles<kDim>& s, int stage,
                                        float (&scores)[kTiles][kKeys / 8][4]) {
  const int lane = int(threadIdx.x) % 32, first = int(threadIdx.x) / 32 * kTiles * 16;
#pragma unroll
  for (int m = 0; m < kTiles; ++m)
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[m][n][i] = 0;
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    uint32_t a[kTiles][4];
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
      ptx::load_matrix_x4(a[m], &s.q[first + m * 16 + lane % 16][step * 16 + lane / 16 * 8]);
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) {
      uint32_t b[4];
      ptx::load_matrix_x4(b, &s.k[stage][n * 16 + lane % 8 + lane / 16 * 8][step * 16 + lane / 8 % 2 * 8]);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        ptx::mma_16816(scores[m][2 * n], a[m], b[0], b[1]);
        ptx::mma_16816(scores[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

/// out[m][n] += P·V, P being the fp16-rounded weights.
template <int kDim>
__device__ inline void multiply_values(const SharedTiles<kDim>& s, int stage,
                                       const float (&weights)[kTiles][kKeys / 8][4],
                                       float (&out)[kTiles][kDim / 8][4]) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step) {
    uint32_t a[kTiles][4];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      const auto &low = weights[m][2 * step], &high = weights[m][2 * step + 1];
      a[m][0] = pack(low[0], low[1]);
      a[m][1] = pack(low[2], low[3]);
      a[m][2] = pack(high[0], high[1]);
      a[m][3] = pack(high[2], high[3]);
    }
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      uint32_t b[4];
      load_matrix_x4_transposed(b, &s.v[stage][step * 16 + lane % 16][n * 16 + lane / 16 * 8]);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        ptx::mma_16816(out[m][2 * n], a[m], b[0], b[1]);
        ptx::mma_16816(out[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

/// Rows of a warp as its lanes hold them: lane l has rows l/4 and l/4 + 8 of each tile; index m·2 + half.
struct RowSoftmax {
  float max[kTiles * 2];
  float sum[kTiles * 2];  ///< of this lane's keys only, until the end
};

/// Scores outside the causal triangle become −∞. `position` is the position of this lane's first row.
__device__ inline void mask(float (&scores)[kTiles][kKeys / 8][4], int first_key, int position) {
  const int key = first_key + int(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int m = 0; m < kTiles; ++m)
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (key + n * 8 + i % 2 > position + m * 16 + i / 2 * 8) scores[m][n][i] = -INFINITY;
}

/// Scores become weights; sums and accumulators are rescaled to the new maxima. `scale` includes log2 e.
template <int kColumns>
__device__ inline void softmax_step(float (&scores)[kTiles][kKeys / 8][4], float (&out)[kTiles][kColumns][4],
                                    RowSoftmax& rows, float scale) {
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float& row_max = rows.max[m * 2 + half];
      float& row_sum = rows.sum[m * 2 + half];
      float largest = -INFINITY;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
        largest = fmaxf(largest, fmaxf(scores[m][n][half * 2], scores[m][n][half * 2 + 1]));
      // Every row sees key 0, so the maximum is finite from the first tile on.
      const float max = fmaxf(row_max, quad_max(largest) * scale), rescale = exp2f(row_max - max);
      row_max = max;
      row_sum *= rescale;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int i = half * 2; i < half * 2 + 2; ++i) {
          scores[m][n][i] = exp2f(scores[m][n][i] * scale - max);
          row_sum += scores[m][n][i];
        }
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        out[m][n][half * 2] *= rescale;
        out[m][n][half * 2 + 1] *= rescale;
      }
    }
  }
}

template <int kDim>
__global__ void __launch_bounds__(kThreads) attention_prefill_kernel(AttentionTask t) {
  constexpr float kLog2E = 1.4426950408889634f;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& s = *reinterpret_cast<SharedTiles<kDim>*>(memory);
  let_successor_start();
  wait_for_predecessor();
  const int sequence = int(blockIdx.z), head = int(blockIdx.y);
  const int begin = t.query_start[sequence];
  Block b;
  b.queries = t.query_start[sequence + 1] - begin;
  b.first_row = int(gridDim.x - 1 - blockIdx.x) * kRows;
  b.context = t.context_len[sequence];
  if (b.queries < t.min_queries || b.queries > t.max_queries || b.first_row >= b.queries || b.context <= 0)
    return;
  b.kv_head = head / (t.q_heads / t.kv_heads);
  b.q_stride = int64_t{t.q_heads + 2 * t.kv_heads} * t.head_dim;
  b.q = static_cast<const __half*>(t.q) + begin * b.q_stride + int64_t{head} * t.head_dim;
  b.blocks = t.block_table + int64_t{sequence} * t.max_blocks;

  const int lane = int(threadIdx.x) % 32;
  const int row = int(threadIdx.x) / 32 * kTiles * 16 + lane / 4;  // this lane's first, in the block
  const int offset = b.context - b.queries + b.first_row;          // position of the block's first row
  const int seen = min(offset + kRows, b.context);
  const int tiles = (seen + kKeys - 1) / kKeys;

  float out[kTiles][kDim / 8][4];
  RowSoftmax rows;
#pragma unroll
  for (int m = 0; m < kTiles; ++m)
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) out[m][n][i] = 0;
#pragma unroll
  for (int i = 0; i < kTiles * 2; ++i) {
    rows.max[i] = -INFINITY;
    rows.sum[i] = 0;
  }

  load_queries(s, t, b);
  load_keys(s, t, b, 0);
  ptx::copy_async_commit();
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) load_keys(s, t, b, tile + 1);
    ptx::copy_async_commit();
    ptx::copy_async_wait<1>();
    __syncthreads();  // all threads' copies of this tile have arrived
    float scores[kTiles][kKeys / 8][4];
    multiply_queries(s, tile % 2, scores);
    if ((tile + 1) * kKeys > offset + 1) mask(scores, tile * kKeys, offset + row);
    softmax_step(scores, out, rows, t.scale * kLog2E);
    multiply_values(s, tile % 2, scores, out);
    __syncthreads();  // the next copies overwrite this stage
  }

#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float factor = 1.0f / quad_sum(rows.sum[m * 2 + half]);
      const int query = b.first_row + row + m * 16 + half * 8;
      if (query >= b.queries) continue;
      __half* target = static_cast<__half*>(t.out) + (int64_t{begin + query} * t.q_heads + head) * t.head_dim;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const int column = n * 8 + lane % 4 * 2;
        if (column < t.head_dim)
          *reinterpret_cast<__half2*>(target + column) =
              __floats2half2_rn(out[m][n][half * 2] * factor, out[m][n][half * 2 + 1] * factor);
      }
    }
  }
}

template <int kDim>
void run(Context& context, const AttentionTask& task, int sequences, int max_query_len) {
  constexpr size_t kShared = sizeof(SharedTiles<kDim>);
  SPINFER_CUDA_CHECK(cudaFuncSetAttribute(attention_prefill_kernel<kDim>,
                                          cudaFuncAttributeMaxDynamicSharedMemorySize, int(kShared)));
  const dim3 grid(unsigned((max_query_len + kRows - 1) / kRows), unsigned(task.q_heads), unsigned(sequences));
  launch(context, "attention_prefill", attention_prefill_kernel<kDim>, {grid, dim3(kThreads), kShared}, task);
}

/// Calls f with the SharedTiles of the instance that serves the head size.
template <class F>
auto with_tiles(int head_dim, const F& f) {
  if (head_dim <= 64) return f(std::type_identity<SharedTiles<64>>());
  if (head_dim <= 80) return f(std::type_identity<SharedTiles<80>>());
  if (head_dim <= 96) return f(std::type_identity<SharedTiles<96>>());
  return f(std::type_identity<SharedTiles<128>>());
}

}  // namespace

int prefill_shared_bytes(int head_dim) {
  return with_tiles(head_dim, []<class Tiles>(std::type_identity<Tiles>) { return int(sizeof(Tiles)); });
}

void attention_prefill(Context& context, const AttentionTask& task, int sequences, int max_query_len) {
  check(sequences <= 65535, "attention: {} sequences in a batch: must be at most 65535", sequences);
  with_tiles(task.head_dim, [&]<class Tiles>(std::type_identity<Tiles>) {
    run<Tiles::kHeadDim>(context, task, sequences, max_query_len);
  });
}

}  // namespace spinfer::cuda
