// rope_append: rotary position embedding of q and k in place; k and v go to the paged cache.
//
// Grid: (tokens, parts of the heads). A thread owns 8 neighbouring pairs (i, i + head_dim/2), computes their
// angles once and takes every lanes-th head of its part: two 16-byte loads, two stores, two more into the
// cache for k and v. Head sizes that are no multiple of 16 take a kernel with one pair a thread and a block a
// head.
#include "kernels/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/rotate.cuh"

namespace spinfer::cuda {
namespace {

constexpr int kThreads = 256;

struct RopeTask {
  __half* qkv;
  const int32_t* positions;
  const int32_t* slots;
  const float* inv_freq;
  int q_heads, kv_heads, head_dim, block_size;
  __half* k;
  __half* v;

  __device__ int heads() const { return q_heads + 2 * kv_heads; }
  __device__ bool rotates(int head) const { return inv_freq && head < q_heads + kv_heads; }
  /// Where the cache wants this k or v head of a token; null for q heads and padding.
  __device__ __half* cached(int head, int slot) const {
    if (head < q_heads || slot < 0) return nullptr;
    const bool is_k = head < q_heads + kv_heads;
    const int64_t kv_head = head - q_heads - (is_k ? 0 : kv_heads);
    const int64_t row = (int64_t{slot / block_size} * kv_heads + kv_head) * block_size + slot % block_size;
    return (is_k ? k : v) + row * head_dim;
  }
};

__global__ void rope_append_kernel(RopeTask t) {
  let_successor_start();
  wait_for_predecessor();
  const int half = t.head_dim / 2, vectors = half / kVec;
  const int vector = int(threadIdx.x) % vectors, lane = int(threadIdx.x) / vectors,
            lanes = kThreads / vectors;
  if (lane >= lanes) return;
  const int64_t token = blockIdx.x;
  const int slot = t.slots[token];
  float cosines[kVec], sines[kVec];
  if (t.inv_freq) {
    const float position = float(t.positions[token]);
#pragma unroll
    for (int i = 0; i < kVec; ++i) sincosf(position * t.inv_freq[vector * kVec + i], &sines[i], &cosines[i]);
  }
  for (int head = int(blockIdx.y) * lanes + lane; head < t.heads(); head += int(gridDim.y) * lanes) {
    if (!t.rotates(head) && head < t.q_heads) continue;
    __half* base = t.qkv + (token * t.heads() + head) * t.head_dim + vector * kVec;
    Vec8 low = *reinterpret_cast<const Vec8*>(base), high = *reinterpret_cast<const Vec8*>(base + half);
    if (t.rotates(head)) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float2 a = __half22float2(low.pairs[i]), b = __half22float2(high.pairs[i]);
        rotate(a.x, b.x, cosines[2 * i], sines[2 * i]);
        rotate(a.y, b.y, cosines[2 * i + 1], sines[2 * i + 1]);
        low.pairs[i] = __floats2half2_rn(a.x, a.y);
        high.pairs[i] = __floats2half2_rn(b.x, b.y);
      }
      *reinterpret_cast<Vec8*>(base) = low;
      *reinterpret_cast<Vec8*>(base + half) = high;
    }
    if (__half* cached = t.cached(head, slot)) {
      *reinterpret_cast<Vec8*>(cached + vector * kVec) = low;
      *reinterpret_cast<Vec8*>(cached + half + vector * kVec) = high;
    }
  }
}

/// Any head size. Grid: (tokens, heads).
__global__ void rope_append_any_kernel(RopeTask t) {
  let_successor_start();
  wait_for_predecessor();
  const int64_t token = blockIdx.x;
  const int head = int(blockIdx.y), half = t.head_dim / 2;
  __half* base = t.qkv + (token * t.heads() + head) * t.head_dim;
  __half* cached = t.cached(head, t.slots[token]);
  for (int i = int(threadIdx.x); i < t.head_dim - half; i += int(blockDim.x)) {
    if (i < half) {
      if (t.rotates(head)) {
        float sine, cosine, a = __half2float(base[i]), b = __half2float(base[i + half]);
        sincosf(float(t.positions[token]) * t.inv_freq[i], &sine, &cosine);
        rotate(a, b, cosine, sine);
        base[i] = __float2half_rn(a);
        base[i + half] = __float2half_rn(b);
      }
      if (cached) {
        cached[i] = base[i];
        cached[i + half] = base[i + half];
      }
    } else if (cached) {  // the last element of an odd head has no partner
      cached[2 * half] = base[2 * half];
    }
  }
}

}  // namespace

void rope_append(DeviceContext& opaque, const RopeAppendArgs& a) {
  Context& context = context_of(opaque);
  context.activate();
  check(a.head_dim >= 1 && a.block_size >= 1, "rope_append: head_dim {} and block size {} must be positive",
        a.head_dim, a.block_size);
  const RopeTask task{device_half(a.qkv),  a.positions,        a.slots,    a.inv_freq,
                      a.q_heads,           a.kv_heads,         a.head_dim, a.block_size,
                      device_half(a.kv.k), device_half(a.kv.v)};
  const int heads = a.q_heads + 2 * a.kv_heads;
  const int vectors = a.head_dim / 2 / kVec;
  const bool fast =
      a.head_dim % (2 * kVec) == 0 && vectors <= kThreads && vectorisable(a.head_dim, a.qkv, a.kv.k, a.kv.v);
  if (!fast) {
    launch(context, "rope_append", rope_append_any_kernel, {dim3(unsigned(a.n), unsigned(heads)), dim3(64)},
           task);
    return;
  }
  const int lanes = kThreads / vectors;
  const int most_parts = (heads + lanes - 1) / lanes;
  const int wanted = a.n > 0 ? (2 * context.facts().sm_count + a.n - 1) / a.n : 1;  // two blocks an SM
  const int parts = wanted < most_parts ? wanted : most_parts;
  launch(context, "rope_append", rope_append_kernel, {dim3(unsigned(a.n), unsigned(parts)), dim3(kThreads)},
         task);
}

}  // namespace spinfer::cuda
