// add_norm: residual addition, then RMS or layer norm. One block a token.
//
// The row stays in registers, 8 values (16 bytes) a vector and up to kVectors of them a thread, so memory
// sees each input once: 2 (+ 2 with delta) bytes read and 2 (+ 2) written an element. Gain and bias, which no
// op writes, are fetched before the wait for the kernel that makes the row: in a decode step they come from
// far away. Rows that cannot be read 16 bytes at a time take a kernel that reads them again in each pass.
//
// Statistics are fp32, of the rounded h, and cost one barrier: a warp takes its mean, then the squares around
// that mean, and the warps' are merged (Chan, Golub, LeVeque 1979), which is as exact as a pass around the
// row's mean.
//
// With a delta to be summed over ranks, each thread sends its vector to the peers and adds theirs as they
// arrive (peer_exchange.cuh): the all-reduce costs no kernel of its own. Larger tensors, and rows of more
// vectors than a block has threads, are summed before.
//
// Measured on an H200 in a chain of dependent launches (scripts/results/h200_ops.json, before its accesses
// were 16 bytes wide): 8 rows of 4096, RMS 2.0 µs; of 5120, layer norm 2.5 µs.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/peer_exchange.cuh"

namespace spinfer::cuda {
namespace {

constexpr int kMaxThreads = 1024;

struct NormTask {
  __half* h;
  const __half* delta;
  const __half* gain;
  const __half* bias;
  __half* out;
  float eps;
  int d;
  bool layer;
};

/// The sum over the block, the same on every thread. Two barriers: the first before totals are read, the
/// second so that the next call may write them.
__device__ inline float block_sum(float x) {
  __shared__ float totals[kMaxThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  if (threadIdx.x % 32 == 0) totals[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) sum += totals[warp];
  __syncthreads();
  return sum;
}

__device__ inline void unpack(const Vec8& v, float (&x)[kVec]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = __half22float2(v.pairs[i]);
    x[2 * i] = pair.x;
    x[2 * i + 1] = pair.y;
  }
}
__device__ inline Vec8 pack(const float (&x)[kVec]) {
  Vec8 v;
#pragma unroll
  for (int i = 0; i < 4; ++i) v.pairs[i] = __floats2half2_rn(x[2 * i], x[2 * i + 1]);
  return v;
}

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

/// Mean and mean square around it; for RMS norm the mean is taken as 0.
struct Moments {
  float mean, variance;
};

/// Of a row of d elements spread over the block; a thread has `count` vectors of it. The same on every
/// thread.
template <int kVectors>
__device__ Moments row_moments(const float (&x)[kVectors][kVec], int count, int d, bool layer) {
  __shared__ float sums[kMaxThreads / 32], squares[kMaxThreads / 32], sizes[kMaxThreads / 32];
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
  const float own = warp_sum(float(count * kVec));  // elements of the warp
  float sum = 0, mean = 0;
  if (layer) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
#pragma unroll
      for (int j = 0; j < kVec; ++j) sum += i < count ? x[i][j] : 0.0f;
    sum = warp_sum(sum);
    mean = own > 0 ? sum / own : 0.0f;
  }
  float square = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
#pragma unroll
    for (int j = 0; j < kVec; ++j) square += i < count ? (x[i][j] - mean) * (x[i][j] - mean) : 0.0f;
  square = warp_sum(square);
  if (lane == 0) {
    sums[warp] = sum;
    squares[warp] = square;
    sizes[warp] = own;
  }
  __syncthreads();  // all warps' sums are there
  const bool has = lane < warps;
  const float warp_total = has ? sums[lane] : 0.0f, size = has ? sizes[lane] : 0.0f;
  Moments row{layer ? warp_sum(warp_total) / float(d) : 0.0f, has ? squares[lane] : 0.0f};
  if (layer && size > 0) {
    const float distance = warp_total / size - row.mean;
    row.variance += size * distance * distance;
  }
  row.variance = warp_sum(row.variance) / float(d);
  return row;
}

/// This block's row of t.delta, a thread's vectors of it in `delta`, summed over the ranks. False if the
/// group was aborted. Every thread of the block calls it.
template <int kVectors>
__device__ bool sum_row(const Peers& p, int vectors, Vec8 (&delta)[kVectors]) {
  const uint32_t epoch = call_number(p);
  const auto vector = [&](int i) {
    return int64_t{blockIdx.x} * vectors + i * int(blockDim.x) + int(threadIdx.x);
  };
  const auto has = [&](int i) { return i * int(blockDim.x) + int(threadIdx.x) < vectors; };
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
    if (has(i)) send_vector(p, vector(i), reinterpret_cast<const uint4&>(delta[i]), epoch);
  bool alive = true;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (!has(i) || !alive) continue;
    const uint4 mine = reinterpret_cast<const uint4&>(delta[i]);
    alive = sum_vector(p, vector(i), mine, epoch, delta[i]);
  }
  alive = __syncthreads_and(alive);
  count_call(p, epoch);
  return alive;
}

/// kRanks: t.delta is a part of a sum over the ranks of `p`.
template <int kVectors, bool kRanks>
__global__ void __launch_bounds__(kMaxThreads) add_norm_kernel(NormTask t, const Peers p) {
  let_successor_start();
  const int vectors = t.d / kVec;
  const auto index = [](int i) { return i * int(blockDim.x) + int(threadIdx.x); };
  Vec8 gains[kVectors], biases[kVectors];
  int count = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (index(i) >= vectors) continue;
    ++count;
    if (t.out && t.gain) gains[i] = reinterpret_cast<const Vec8*>(t.gain)[index(i)];
    if (t.out && t.bias) biases[i] = reinterpret_cast<const Vec8*>(t.bias)[index(i)];
  }
  wait_for_predecessor();
  Vec8* h = reinterpret_cast<Vec8*>(t.h + int64_t{blockIdx.x} * t.d);
  const Vec8* delta = reinterpret_cast<const Vec8*>(t.delta ? t.delta + int64_t{blockIdx.x} * t.d : nullptr);
  Vec8 before[kVectors], summed[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
    if (index(i) < vectors) {
      before[i] = h[index(i)];
      if (delta) summed[i] = delta[index(i)];
    }
  if constexpr (kRanks) {
    if (!sum_row(p, vectors, summed)) return;
  }
  float x[kVectors][kVec] = {};
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (index(i) >= vectors) continue;
    unpack(before[i], x[i]);
    if (delta) {
      float y[kVec];
      unpack(summed[i], y);
#pragma unroll
      for (int j = 0; j < kVec; ++j) x[i][j] += y[j];
      const Vec8 rounded = pack(x[i]);
      h[index(i)] = rounded;
      unpack(rounded, x[i]);
    }
  }
  if (!t.out) return;
  const Moments row = row_moments(x, count, t.d, t.layer);
  const float scale = 1.0f / sqrtf(row.variance + t.eps);
  Vec8* out = reinterpret_cast<Vec8*>(t.out + int64_t{blockIdx.x} * t.d);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (index(i) >= vectors) continue;
    float gain[kVec], bias[kVec];
    unpack(gains[i], gain);
    unpack(biases[i], bias);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const float y = (x[i][j] - row.mean) * scale;
      x[i][j] = (t.gain ? y * gain[j] : y) + (t.bias ? bias[j] : 0.0f);
    }
    out[index(i)] = pack(x[i]);
  }
}

/// Any width and alignment, one element at a time.
__global__ void add_norm_any_kernel(NormTask t) {
  let_successor_start();
  wait_for_predecessor();
  __half* h = t.h + int64_t{blockIdx.x} * t.d;
  const __half* delta = t.delta ? t.delta + int64_t{blockIdx.x} * t.d : nullptr;
  float sum = 0;
  for (int i = int(threadIdx.x); i < t.d; i += int(blockDim.x)) {
    if (delta) h[i] = __float2half_rn(__half2float(h[i]) + __half2float(delta[i]));
    sum += __half2float(h[i]);
  }
  if (!t.out) return;
  const float center = t.layer ? block_sum(sum) / float(t.d) : 0.0f;
  float squares = 0;
  for (int i = int(threadIdx.x); i < t.d; i += int(blockDim.x)) {
    const float x = __half2float(h[i]) - center;
    squares += x * x;
  }
  const float scale = 1.0f / sqrtf(block_sum(squares) / float(t.d) + t.eps);
  __half* out = t.out + int64_t{blockIdx.x} * t.d;
  for (int i = int(threadIdx.x); i < t.d; i += int(blockDim.x)) {
    float y = (__half2float(h[i]) - center) * scale;
    if (t.gain) y *= __half2float(t.gain[i]);
    if (t.bias) y += __half2float(t.bias[i]);
    out[i] = __float2half_rn(y);
  }
}

bool takes_vectors(const AddNormArgs& a) {
  return vectorisable(a.d, a.h, a.delta, a.gain, a.bias, a.out) && a.d / kVec <= 4 * kMaxThreads;
}

}  // namespace

bool add_norm_sums(const PeerGroup& peers, const AddNormArgs& a) {
  return a.delta && takes_vectors(a) && a.d / kVec <= kMaxThreads && a.n <= kMostPeerBlocks &&
         peers.takes_lines(int64_t{a.n} * a.d * int64_t{sizeof(Half)});
}

void load_summing_norms() {
  cudaFuncAttributes attributes;
  SPINFER_CUDA_CHECK(cudaFuncGetAttributes(&attributes, add_norm_kernel<1, true>));
}

void add_norm(DeviceContext& opaque, const AddNormArgs& a, const PeerGroup* peers, int rank) {
  Context& context = context_of(opaque);
  context.activate();
  const NormTask task{device_half(a.h),
                      device_half(a.delta),
                      device_half(a.gain),
                      device_half(a.bias),
                      device_half(a.out),
                      a.eps,
                      a.d,
                      a.kind == NormKind::layer};
  const auto shape = [&](int threads) {
    return LaunchShape{dim3(unsigned(a.n)), dim3(unsigned(std::max((threads + 31) / 32 * 32, 32)))};
  };
  if (!takes_vectors(a))
    return launch(context, "add_norm", add_norm_any_kernel, shape(a.d < 4096 ? 128 : 512), task);
  const int vectors = a.d / kVec;
  const int per_thread = vectors <= kMaxThreads ? 1 : vectors <= 2 * kMaxThreads ? 2 : 4;
  auto kernel = per_thread == 1   ? add_norm_kernel<1, false>
                : per_thread == 2 ? add_norm_kernel<2, false>
                                  : add_norm_kernel<4, false>;
  if (peers) kernel = add_norm_kernel<1, true>;
  launch(context, "add_norm", kernel, shape((vectors + per_thread - 1) / per_thread), task,
         peers ? peers->peers_of(rank) : Peers{});
}

}  // namespace spinfer::cuda
