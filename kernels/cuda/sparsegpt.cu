// sparsegpt: block after block of 128 columns: scores, a stable radix sort of them (CUB) for the mask, one
// warp a row for the column by column correction inside the block, and one fp32 product (cuBLAS) for the
// columns behind it.
//
// The correction: lane l of a row's warp holds columns l, l + 32, l + 64, l + 96; the block's 128×128 part of
// U stands in shared memory (64 KiB). fp32 throughout; bound by the product, m·k² multiply-adds in all.
#include <cub/device/device_radix_sort.cuh>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pruning_ops.h"

namespace spinfer::cuda {
namespace {

constexpr int kBlock = kSparseGptBlock;
constexpr int kWarp = 32;
constexpr int kSlots = kBlock / kWarp;  // columns of a lane
constexpr unsigned kThreads = 256;

struct Block {
  float* w;             ///< [m][k], from the block's first column
  const float* factor;  ///< [k][k], from the block's first row and column
  int64_t m, k;
  int cols;
};

/// scores[row·cols + col] as bits, which order as the scores do since none is negative; indices 0, 1, ….
__global__ void score_kernel(Block b, uint32_t* scores, int32_t* indices) {
  wait_for_predecessor();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= b.m * b.cols) return;
  const int64_t row = i / b.cols, col = i % b.cols;
  const float ratio = b.w[row * b.k + col] / b.factor[col * b.k + col];
  scores[i] = __float_as_uint(ratio * ratio);
  indices[i] = int32_t(i);
}

__global__ void mask_kernel(const int32_t* sorted, int64_t zeros, uint8_t* mask) {
  wait_for_predecessor();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < zeros) mask[sorted[i]] = 1;
}

/// errors [m][128]: what the columns behind the block must make up for; zero past `cols`.
__global__ void __launch_bounds__(kThreads) prune_rows_kernel(Block b, const uint8_t* mask, float* errors) {
  extern __shared__ float u[];  // [128][128]
  wait_for_predecessor();
  for (int i = int(threadIdx.x); i < kBlock * kBlock; i += int(kThreads)) {
    const int row = i / kBlock, col = i % kBlock;
    u[i] = row < b.cols && col < b.cols ? b.factor[row * b.k + col] : 0.0f;
  }
  __syncthreads();  // u is whole
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t row = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarp;
  if (row >= b.m) return;
  float w[kSlots], error[kSlots] = {};
  bool gone[kSlots];
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    const int col = s * kWarp + lane;
    w[s] = col < b.cols ? b.w[row * b.k + col] : 0.0f;
    gone[s] = col < b.cols && mask[row * b.cols + col];
  }
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    for (uint32_t left = __ballot_sync(~0u, gone[s]); left != 0; left &= left - 1) {
      const int owner = __ffs(int(left)) - 1, col = s * kWarp + owner;
      const float e = __shfl_sync(~0u, w[s], owner) / u[col * kBlock + col];
      if (lane == owner) {
        error[s] = e;
        w[s] = 0;
      } else if (lane > owner) {
        w[s] -= e * u[col * kBlock + s * kWarp + lane];
      }
#pragma unroll
      for (int later = s + 1; later < kSlots; ++later) w[later] -= e * u[col * kBlock + later * kWarp + lane];
    }
  }
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    const int col = s * kWarp + lane;
    if (col < b.cols) b.w[row * b.k + col] = w[s];
    errors[row * kBlock + col] = error[s];
  }
}

/// Scratch of one call, for its largest block.
struct Buffers {
  std::shared_ptr<void> memory;
  uint32_t *scores, *sorted_scores;
  int32_t *indices, *sorted_indices;
  float* errors;
  uint8_t* mask;
  void* sort;
  size_t sort_bytes = 0;

  Buffers(const Context& context, int64_t m) {
    const size_t count = size_t(m) * kBlock;
    SPINFER_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(
        nullptr, sort_bytes, static_cast<uint32_t*>(nullptr), static_cast<uint32_t*>(nullptr),
        static_cast<int32_t*>(nullptr), static_cast<int32_t*>(nullptr), int(count)));
    memory = context.allocate_shared(count * 21 + sort_bytes + 256);
    scores = static_cast<uint32_t*>(memory.get());
    sorted_scores = scores + count;
    indices = reinterpret_cast<int32_t*>(sorted_scores + count);
    sorted_indices = indices + count;
    errors = reinterpret_cast<float*>(sorted_indices + count);
    mask = reinterpret_cast<uint8_t*>(errors + count);
    const auto end = reinterpret_cast<uintptr_t>(mask + count);
    sort = reinterpret_cast<void*>((end + 255) / 256 * 256);
  }
};

dim3 blocks_for(int64_t threads) {
  return dim3(unsigned((threads + kThreads - 1) / kThreads));
}

void choose(const Context& context, const Block& block, int64_t zeros, Buffers& buffers) {
  const int64_t count = block.m * block.cols;
  SPINFER_CUDA_CHECK(cudaMemsetAsync(buffers.mask, 0, size_t(count), context.stream()));
  if (zeros == 0) return;
  launch(context, "sparsegpt scores", score_kernel, {blocks_for(count), dim3(kThreads)}, block,
         buffers.scores, buffers.indices);
  SPINFER_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(
      buffers.sort, buffers.sort_bytes, buffers.scores, buffers.sorted_scores, buffers.indices,
      buffers.sorted_indices, int(count), 0, 32, context.stream()));
  launch(context, "sparsegpt mask", mask_kernel, {blocks_for(zeros), dim3(kThreads)},
         static_cast<const int32_t*>(buffers.sorted_indices), zeros, buffers.mask);
}

}  // namespace

void sparsegpt(DeviceContext& opaque, const SparseGptArgs& a) {
  constexpr size_t kSharedBytes = kBlock * kBlock * sizeof(float);
  Context& context = context_of(opaque);
  context.activate();
  check(a.m <= std::numeric_limits<int32_t>::max() / kBlock, "sparsegpt: {} rows; at most {} are possible",
        a.m, std::numeric_limits<int32_t>::max() / kBlock);
  SPINFER_CUDA_CHECK(cudaFuncSetAttribute(prune_rows_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          int(kSharedBytes)));
  Buffers buffers(context, a.m);
  for (int64_t begin = 0; begin < a.k; begin += kBlock) {
    const int cols = int(std::min<int64_t>(kBlock, a.k - begin));
    const Block block{a.w + begin, a.factor + begin * (a.k + 1), a.m, a.k, cols};
    choose(context, block, std::llround(a.sparsity * double(a.m * cols)), buffers);
    launch(context, "sparsegpt rows", prune_rows_kernel,
           {blocks_for(a.m * kWarp), dim3(kThreads), kSharedBytes}, block,
           static_cast<const uint8_t*>(buffers.mask), buffers.errors);
    const int64_t end = begin + cols, rest = a.k - end;
    if (rest == 0) break;
    const float minus_one = -1, one = 1;
    // Column-major to cuBLAS: Wᵀ (rest×m) −= U'ᵀ (rest×cols) · Eᵀ (cols×m).
    SPINFER_CUDA_CHECK(cublasSgemm(context.blas(), CUBLAS_OP_N, CUBLAS_OP_N, int(rest), int(a.m), cols,
                                   &minus_one, a.factor + begin * a.k + end, int(a.k), buffers.errors, kBlock,
                                   &one, a.w + end, int(a.k)));
  }
  SPINFER_CUDA_CHECK(cudaStreamSynchronize(context.stream()));  // the buffers go
}

}  // namespace spinfer::cuda
