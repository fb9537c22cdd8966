// Attention for the shapes the fast kernels refuse: head sizes that are no multiple of 8 or above 128
// (prefill) or 256 (decode), block sizes that are no power of two. One warp a (token, q head): its lanes hold
// the head's elements, keys go by one after the other through an online softmax. Correct at any size; not
// meant to be fast.
#include <cuda_fp16.h>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/launch.cuh"

namespace spinfer::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kPerLane = kMaxHeadDim / 32;

__device__ inline float warp_sum(float x) {
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

/// Grid: (tokens of a sequence, q heads in groups of kWarps, sequences).
__global__ void __launch_bounds__(kWarps * 32) attention_plain_kernel(AttentionTask t) {
  let_successor_start();
  wait_for_predecessor();
  const int sequence = int(blockIdx.z), head = int(blockIdx.y) * kWarps + int(threadIdx.x) / 32;
  const int lane = int(threadIdx.x) % 32, d = t.head_dim;
  const int begin = t.query_start[sequence], queries = t.query_start[sequence + 1] - begin;
  if (queries < t.min_queries || queries > t.max_queries || int(blockIdx.x) >= queries || head >= t.q_heads)
    return;
  const int64_t token = begin + int(blockIdx.x);
  const int seen = t.context_len[sequence] - queries + int(blockIdx.x) + 1;
  if (seen <= 0) return;  // padding
  const int kv_head = head / (t.q_heads / t.kv_heads);
  const int32_t* blocks = t.block_table + int64_t{sequence} * t.max_blocks;
  const __half* q = static_cast<const __half*>(t.q) + (token * (t.q_heads + 2 * t.kv_heads) + head) * d;
  float query[kPerLane], acc[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int index = i * 32 + lane;
    query[i] = index < d ? __half2float(q[index]) * t.scale : 0.0f;
    acc[i] = 0;
  }
  float max = -INFINITY, sum = 0;
  for (int key = 0; key < seen; ++key) {
    const int64_t row =
        (int64_t{blocks[key / t.block_size]} * t.kv_heads + kv_head) * t.block_size + key % t.block_size;
    const __half* k = static_cast<const __half*>(t.k) + row * d;
    const __half* v = static_cast<const __half*>(t.v) + row * d;
    float dot = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
      if (i * 32 + lane < d) dot += query[i] * __half2float(k[i * 32 + lane]);
    dot = warp_sum(dot);
    const float larger = fmaxf(max, dot), rescale = __expf(max - larger), weight = __expf(dot - larger);
    sum = sum * rescale + weight;
    max = larger;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
      if (i * 32 + lane < d) acc[i] = acc[i] * rescale + weight * __half2float(v[i * 32 + lane]);
  }
  __half* out = static_cast<__half*>(t.out) + (token * t.q_heads + head) * d;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i)
    if (i * 32 + lane < d) out[i * 32 + lane] = __float2half_rn(acc[i] / sum);
}

}  // namespace

void attention_plain(Context& context, const AttentionTask& task, int sequences, int max_query_len) {
  const dim3 grid(unsigned(max_query_len), unsigned((task.q_heads + kWarps - 1) / kWarps),
                  unsigned(sequences));
  launch(context, "attention_plain", attention_plain_kernel, {grid, dim3(kWarps * 32)}, task);
}

}  // namespace spinfer::cuda
