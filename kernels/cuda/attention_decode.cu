// Decode attention: one new token a sequence over its paged context, split so that long contexts fill the
// GPU.
//
// Grid: (splits of kDecodeSplit tokens, kv heads × chunks of their q heads, sequences). A block of four warps
// reads its split's K and V once for up to kHeads q heads of the kv head's group. Lanes: kLanes lanes hold
// one key, 8 elements (16 bytes) each, so a warp's load covers 32/kLanes keys; kUnroll keys of K and of V a
// lane are under way at once. A lane's keys are fixed by position: warp w takes rounds w, w + 4, … Each lane
// group keeps an online softmax (maximum, sum, accumulators) in registers; groups of a warp are merged by
// shuffles, warps through shared memory, splits by a second kernel, all in fixed order.
//
// Memory: 4·head_dim bytes a key and kv head, read once.
// Measured on an H200 (64 sequences of 2048 or 4096 tokens, head_dim 128, read bandwidth 4.65 TB/s): one q
// head a kv head 4.24 TB/s (4.16 at head_dim 64, 3.61 at 80, where 6 of 16 lanes idle), 4 q heads 2.75, 8 q
// heads 1.07 TB/s. Groups are bound by instructions (dot products and their shuffles), those of 8 by spilled
// registers too: tensor cores are the way for them.
//
// Limits: head_dim a multiple of 8 up to 256, block size a power of two.
#include <cuda_fp16.h>

#include "kernels/check.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/launch.cuh"

namespace spinfer::cuda {
namespace {

constexpr int kWarps = 4;

/// One q head's softmax so far: weights are exp2(score − max).
struct Softmax {
  float max = -INFINITY;
  float sum = 0;
};

/// What to multiply sums by when the maximum grows from `from` to `to`; 0 where nothing was seen yet.
__device__ inline float rescale_of(float from, float to) {
  return from == -INFINITY ? 0.0f : exp2f(from - to);
}

__device__ inline void unpack(const Vec8& v, float (&x)[kVec]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = __half22float2(v.pairs[i]);
    x[2 * i] = pair.x;
    x[2 * i + 1] = pair.y;
  }
}

__device__ inline void store(__half* out, const float (&x)[kVec], float factor) {
  Vec8 v;
#pragma unroll
  for (int i = 0; i < 4; ++i) v.pairs[i] = __floats2half2_rn(x[2 * i] * factor, x[2 * i + 1] * factor);
  *reinterpret_cast<Vec8*>(out) = v;
}

/// Partial results: [sequence][split][q head] of head_dim accumulators, the maximum, the sum.
__device__ inline float* partial_of(float* partials, const AttentionTask& t, int splits, int sequence,
                                    int split, int head) {
  return partials + ((int64_t{sequence} * splits + split) * t.q_heads + head) * (t.head_dim + 2);
}

template <int kLanes, int kHeads>
__global__ void __launch_bounds__(kWarps * 32, kHeads >= 8   ? 3
                                               : kHeads >= 4 ? 4
                                                             : 6)
    attention_decode_kernel(AttentionTask t, int head_chunks, float* partials) {
  constexpr int kGroups = 32 / kLanes;          // keys a warp's load covers
  constexpr int kUnroll = kHeads >= 8 ? 2 : 4;  // keys a lane has under way
  constexpr int kRound = kGroups * kUnroll;     // keys a warp takes at once
  constexpr float kLog2E = 1.4426950408889634f;
  let_successor_start();
  wait_for_predecessor();
  const int sequence = int(blockIdx.z), split = int(blockIdx.x);
  const int token = t.query_start[sequence];
  if (t.query_start[sequence + 1] - token != 1) return;
  const int context = t.context_len[sequence];
  const int begin = split * kDecodeSplit, end = min(context, begin + kDecodeSplit);
  if (begin >= end) return;

  const int group = t.q_heads / t.kv_heads;
  const int kv_head = int(blockIdx.y) / head_chunks;
  const int first_head = kv_head * group + int(blockIdx.y) % head_chunks * kHeads;
  const int heads = min(kHeads, (kv_head + 1) * group - first_head);
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % kLanes;
  const int key_in_load = int(threadIdx.x) % 32 / kLanes;
  const bool holds = lane * kVec < t.head_dim;
  const int32_t* blocks = t.block_table + int64_t{sequence} * t.max_blocks;

  float query[kHeads][kVec], acc[kHeads][kVec];
  Softmax softmax[kHeads];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    Vec8 q{};
    if (holds && h < heads) {
      const int64_t row = int64_t{token} * (t.q_heads + 2 * t.kv_heads) + first_head + h;
      q = *reinterpret_cast<const Vec8*>(static_cast<const __half*>(t.q) + row * t.head_dim + lane * kVec);
    }
    unpack(q, query[h]);
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      query[h][i] *= t.scale * kLog2E;
      acc[h][i] = 0;
    }
  }

  for (int round = begin + warp * kRound; round < end; round += kWarps * kRound) {
    Vec8 keys[kUnroll], values[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int key = round + u * kGroups + key_in_load;
      keys[u] = values[u] = Vec8{};
      if (key >= end || !holds) continue;
      const int64_t block = blocks[key >> t.block_shift];
      const int64_t row = (block * t.kv_heads + kv_head) * t.block_size + (key & (t.block_size - 1));
      const int64_t offset = row * t.head_dim + lane * kVec;
      keys[u] = *reinterpret_cast<const Vec8*>(static_cast<const __half*>(t.k) + offset);
      values[u] = *reinterpret_cast<const Vec8*>(static_cast<const __half*>(t.v) + offset);
    }
    float scores[kHeads][kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      float k[kVec];
      unpack(keys[u], k);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        float dot = 0;
#pragma unroll
        for (int i = 0; i < kVec; ++i) dot += query[h][i] * k[i];
#pragma unroll
        for (int offset = kLanes / 2; offset > 0; offset /= 2) dot += __shfl_xor_sync(~0u, dot, offset);
        scores[h][u] = round + u * kGroups + key_in_load < end ? dot : -INFINITY;
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float max = softmax[h].max;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) max = fmaxf(max, scores[h][u]);
      const float rescale = rescale_of(softmax[h].max, max);
      softmax[h].max = max;
      softmax[h].sum *= rescale;
#pragma unroll
      for (int i = 0; i < kVec; ++i) acc[h][i] *= rescale;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        // A key past the end has −∞: its weight must be 0 also where the group has seen no key (max = −∞).
        scores[h][u] = scores[h][u] == -INFINITY ? 0.0f : exp2f(scores[h][u] - max);
        softmax[h].sum += scores[h][u];
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      float v[kVec];
      unpack(values[u], v);
#pragma unroll
      for (int h = 0; h < kHeads; ++h)
#pragma unroll
        for (int i = 0; i < kVec; ++i) acc[h][i] += scores[h][u] * v[i];
    }
  }

  // Merge: lane groups of a warp, then the warps through shared memory, in order.
  __shared__ float merged_acc[kWarps][kLanes * kVec];
  __shared__ Softmax merged[kWarps];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (h >= heads) break;
#pragma unroll
    for (int offset = kLanes; offset < 32; offset *= 2) {
      const float other_max = __shfl_xor_sync(~0u, softmax[h].max, offset);
      const float other_sum = __shfl_xor_sync(~0u, softmax[h].sum, offset);
      const float max = fmaxf(softmax[h].max, other_max);
      const float mine = rescale_of(softmax[h].max, max), others = rescale_of(other_max, max);
      softmax[h] = {max, softmax[h].sum * mine + other_sum * others};
#pragma unroll
      for (int i = 0; i < kVec; ++i)
        acc[h][i] = acc[h][i] * mine + __shfl_xor_sync(~0u, acc[h][i], offset) * others;
    }
    __syncthreads();  // warp 0 has read the head before
    if (threadIdx.x % 32 < kLanes) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) merged_acc[warp][lane * kVec + i] = acc[h][i];
      if (lane == 0) merged[warp] = softmax[h];
    }
    __syncthreads();
    if (warp != 0 || threadIdx.x >= kLanes || !holds) continue;
    Softmax total = merged[0];
    for (int w = 1; w < kWarps; ++w) total.max = fmaxf(total.max, merged[w].max);
    total.sum = 0;
    float out[kVec] = {};
    for (int w = 0; w < kWarps; ++w) {
      const float factor = rescale_of(merged[w].max, total.max);
      total.sum += merged[w].sum * factor;
#pragma unroll
      for (int i = 0; i < kVec; ++i) out[i] += merged_acc[w][lane * kVec + i] * factor;
    }
    const int head = first_head + h;
    if (context <= kDecodeSplit) {
      __half* row = static_cast<__half*>(t.out) + (int64_t{token} * t.q_heads + head) * t.head_dim;
      store(row + lane * kVec, out, 1.0f / total.sum);
    } else {
      float* partial = partial_of(partials, t, int(gridDim.x), sequence, split, head);
#pragma unroll
      for (int i = 0; i < kVec; ++i) partial[lane * kVec + i] = out[i];
      if (lane == 0) {
        partial[t.head_dim] = total.max;
        partial[t.head_dim + 1] = total.sum;
      }
    }
  }
}

/// Adds the splits of one (sequence, q head), in order. Grid: (q heads, sequences).
__global__ void attention_combine_kernel(AttentionTask t, int splits, float* partials) {
  let_successor_start();
  wait_for_predecessor();
  const int sequence = int(blockIdx.y), head = int(blockIdx.x);
  const int token = t.query_start[sequence], context = t.context_len[sequence];
  if (t.query_start[sequence + 1] - token != 1 || context <= kDecodeSplit) return;
  const int own = (context + kDecodeSplit - 1) / kDecodeSplit;
  const int64_t stride = int64_t{t.q_heads} * (t.head_dim + 2);
  const float* first = partial_of(partials, t, splits, sequence, 0, head);
  float max = -INFINITY;
  for (int s = 0; s < own; ++s) max = fmaxf(max, first[s * stride + t.head_dim]);
  const int i = int(threadIdx.x);
  if (i >= t.head_dim) return;
  float acc = 0, sum = 0;
  for (int s = 0; s < own; ++s) {
    const float factor = rescale_of(first[s * stride + t.head_dim], max);
    acc += first[s * stride + i] * factor;
    sum += first[s * stride + t.head_dim + 1] * factor;
  }
  static_cast<__half*>(t.out)[(int64_t{token} * t.q_heads + head) * t.head_dim + i] =
      __float2half_rn(acc / sum);
}

template <int kLanes, int kHeads>
void run(Context& context, const AttentionTask& task, int sequences, int splits, float* partials) {
  const int chunks = (task.q_heads / task.kv_heads + kHeads - 1) / kHeads;
  const dim3 grid(unsigned(splits), unsigned(task.kv_heads * chunks), unsigned(sequences));
  launch(context, "attention_decode", attention_decode_kernel<kLanes, kHeads>, {grid, dim3(kWarps * 32)},
         task, chunks, partials);
}

template <int kLanes>
void run_group(Context& context, const AttentionTask& task, int sequences, int splits, float* partials) {
  const int group = task.q_heads / task.kv_heads;
  if (group == 1) return run<kLanes, 1>(context, task, sequences, splits, partials);
  if (group <= 4 || kLanes > 16) return run<kLanes, 4>(context, task, sequences, splits, partials);
  run<kLanes, kLanes <= 16 ? 8 : 4>(context, task, sequences, splits, partials);
}

}  // namespace

void attention_decode(Context& context, const AttentionTask& task, int sequences, int splits,
                      float* partials) {
  check(sequences <= 65535, "attention: {} sequences in a batch: must be at most 65535", sequences);
  if (task.head_dim <= 64) {
    run_group<8>(context, task, sequences, splits, partials);
  } else if (task.head_dim <= 128) {
    run_group<16>(context, task, sequences, splits, partials);
  } else {
    run_group<32>(context, task, sequences, splits, partials);
  }
  if (splits > 1) {
    launch(
        context, "attention_combine", attention_combine_kernel,
        {dim3(unsigned(task.q_heads), unsigned(sequences)), dim3(unsigned((task.head_dim + 31) / 32 * 32))},
        task, splits, partials);
  }
}

}  // namespace spinfer::cuda
