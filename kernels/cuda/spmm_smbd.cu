// SMBD: the paper's SpMM (section 4.3, figure 8) on canonical TCA-BME, for every GPU from sm_80 on. It is the
// fallback where the Hopper kernels do not apply, and the published baseline of the benchmarks.
//
// Contract   y[n][m] = act(W·x + b) + residual for any m, k, n ≥ 1, any mask; fp16 in and out, fp32
//            accumulation. The reduction order is fixed by (m, k, GPU): bitwise the same from run to run and
//            for any batch.
// Data       one GroupTile (64×64) a step: 64 bitmaps, its nonzeros, X [n tile][64 columns].
// Grid       (row of GroupTiles, split, n tile), 128 threads: warp w owns strip w, 16 rows. A block takes a
//            contiguous range of the row's GroupTiles.
// Lanes      lane l decodes bits 2l and 2l+1 of each BitmapTile: exactly its A register of mma.m16n8k16. The
//            four BitmapTiles of a TCTile are the four registers.
// Decoding   position of a value = tile start + nonzeros of earlier BitmapTiles + popcount of the lower bits.
// Shared     two `SmbdStage`s (smbd_tile.h), the next tile's copies overlap this tile's decode and mma. A
//            stage holds a fully dense tile, so no mask can overrun it: 21 KB (n tile 8) to 37 KB (64) for
//            both.
// Reduction  split > 1: partial sums to the workspace, added in split order by `reduce_kernel`.
// Roofline   1/8 + 2(1−s) bytes a weight; bound by issue, not bytes: ~1 POPC and two predicated 16-bit shared
//            loads per BitmapTile and lane (the published code has 485 instructions per 1024 weights).
// Measured   see scripts/results/; against dense on an H200 it loses, as the published kernel does
//            (0.50–0.66×).
#include <type_traits>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/smbd_tile.h"
#include "kernels/cuda/spmm_smbd.h"

namespace spinfer::cuda {
namespace {

constexpr int kThreads = 128;

struct SmbdParams {
  TcaBmeView w;
  const __half* x;  ///< [n][k]
  int n;
  bool x_vectors;   ///< rows of x are 16-byte aligned
  float* partials;  ///< [split][n][m], or null: finish here
  __half* y;        ///< [n][m]
  Epilogue epilogue;
};

__device__ inline int64_t first_value(const TcaBmeView& w, int64_t tile) {
  return w.offsets32 ? int64_t(w.offsets32[tile]) : int64_t(w.offsets64[tile]);
}

/// Starts the copies of one GroupTile and its X tile. The values keep their misalignment to 16 bytes in
/// shared memory.
template <int kNTile>
__device__ void fetch(SmbdStage<kNTile>& stage, const SmbdParams& p, int64_t tile, int64_t col, int token) {
  const uint64_t* bitmaps = p.w.bitmaps + tile * kBitmapsPerGroupTile;
  if (threadIdx.x < kBitmapsPerGroupTile / 2)
    ptx::copy_async_16(&stage.bitmaps[2 * threadIdx.x], bitmaps + 2 * threadIdx.x, 16);

  const int64_t begin = first_value(p.w, tile), end = first_value(p.w, tile + 1);
  const int64_t aligned = begin & ~int64_t{7};
  for (int64_t at = aligned + 8 * threadIdx.x; at < end; at += 8 * kThreads)
    ptx::copy_async_16(&stage.values[at - aligned], p.w.values + at, int(min(int64_t{16}, (end - at) * 2)));

  constexpr int kVectors = kGroupTile / 8;
  for (int i = threadIdx.x; i < kNTile * kVectors; i += kThreads) {
    const int row = i / kVectors, part = i % kVectors * 8;
    const int64_t left = token + row < p.n ? p.w.k - col - part : 0;  // columns that exist
    uint16_t* to = &stage.x[row * SmbdStage<kNTile>::kXStride + part];
    const __half* from = p.x + (left > 0 ? int64_t(token + row) * p.w.k + col + part : 0);
    if (p.x_vectors) {
      ptx::copy_async_16(to, from, left <= 0 ? 0 : left >= 8 ? 16 : int(left) * 2);
    } else {
      for (int j = 0; j < 8; ++j) to[j] = j < left ? __half_as_ushort(from[j]) : uint16_t{0};
    }
  }
}

/// Nonzeros of the tile before each BitmapTile of this warp's strip: lane 2i and 2i+1 … the caller shuffles.
__device__ inline int2 scan_bitmaps(const uint64_t* bitmaps, int lane) {
  const int a = __popcll(bitmaps[2 * lane]), b = __popcll(bitmaps[2 * lane + 1]);
  int sum = a + b;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int other = __shfl_up_sync(~0u, sum, d);
    if (lane >= d) sum += other;
  }
  return {sum - a - b, sum - b};
}

/// The lane's two weights of one BitmapTile as an A register; `values` points at the BitmapTile's first
/// nonzero.
__device__ inline uint32_t decode_pair(uint64_t bitmap, const uint16_t* values, int lane) {
  const uint32_t low_word = uint32_t(bitmap), high_word = uint32_t(bitmap >> 32);
  const bool high = lane >= 16;
  const uint32_t word = high ? high_word : low_word;
  const int shift = lane % 16 * 2;
  const int at = (high ? __popc(low_word) : 0) + __popc(word & ((1u << shift) - 1));
  const uint32_t pair = word >> shift & 3;
  uint32_t first = 0, second = 0;
  if (pair & 1) first = values[at];
  if (pair & 2) second = values[at + int(pair & 1)];
  return first | second << 16;
}

template <int kNTile>
__device__ void multiply(const SmbdStage<kNTile>& stage, int misalignment, float (&acc)[kNTile / 8][4]) {
  const int lane = threadIdx.x % 32, strip = threadIdx.x / 32;
  const int2 before = scan_bitmaps(stage.bitmaps, lane);
#pragma unroll
  for (int tc = 0; tc < 4; ++tc) {
    uint32_t a[4];
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const int bitmap = (strip * 4 + tc) * kBitmapsPerTcTile + part;
      const int start = __shfl_sync(~0u, part % 2 ? before.y : before.x, bitmap / 2);
      a[part] = decode_pair(stage.bitmaps[bitmap], stage.values + misalignment + start, lane);
    }
    // One ldmatrix.x4 brings B of two token octets (or, at 8 tokens, the same octet twice over).
#pragma unroll
    for (int octet = 0; octet < kNTile / 8; octet += 2) {
      const int row = (octet + (kNTile > 8 ? lane / 16 : 0)) * 8 + lane % 8;
      uint32_t b[4];
      ptx::load_matrix_x4(b, &stage.x[row * SmbdStage<kNTile>::kXStride + tc * kTcTile + lane / 8 % 2 * 8]);
      ptx::mma_16816(acc[octet], a, b[0], b[1]);
      if constexpr (kNTile > 8) ptx::mma_16816(acc[octet + 1], a, b[2], b[3]);
    }
  }
}

template <int kNTile>
__device__ void store(const SmbdParams& p, const float (&acc)[kNTile / 8][4], int token) {
  const int lane = threadIdx.x % 32, strip = threadIdx.x / 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = int64_t(blockIdx.x) * kGroupTile + strip * kTcTile + half * 8 + lane / 4;
    if (row >= p.w.m) continue;
    const float bias = p.epilogue.bias ? __half2float(p.epilogue.bias[row]) : 0.0f;
#pragma unroll
    for (int i = 0; i < kNTile / 8 * 2; ++i) {
      const int col = token + i / 2 * 8 + lane % 4 * 2 + i % 2;
      if (col >= p.n) continue;
      const float value = acc[i / 2][half * 2 + i % 2];
      const int64_t index = int64_t(col) * p.w.m + row;
      if (p.partials) {
        p.partials[int64_t(blockIdx.y) * p.n * p.w.m + index] = value;
      } else {
        p.y[index] = finish(value, bias, p.epilogue, index);
      }
    }
  }
}

template <int kNTile>
__global__ void __launch_bounds__(kThreads) smbd_kernel(const SmbdParams p) {
  extern __shared__ __align__(16) unsigned char shared[];
  auto* stages = reinterpret_cast<SmbdStage<kNTile>*>(shared);
  const int64_t across = (p.w.k + kGroupTile - 1) / kGroupTile;
  const int64_t row_start = int64_t(blockIdx.x) * across;
  const int64_t begin = row_start + across * blockIdx.y / gridDim.y;
  const int64_t end = row_start + across * (blockIdx.y + 1) / gridDim.y;
  const int token = int(blockIdx.z) * kNTile;

  float acc[kNTile / 8][4] = {};
  fetch(stages[0], p, begin, (begin - row_start) * kGroupTile, token);
  ptx::copy_async_commit();
  for (int64_t tile = begin; tile < end; ++tile) {
    const int current = int(tile - begin) & 1;
    if (tile + 1 < end) fetch(stages[current ^ 1], p, tile + 1, (tile + 1 - row_start) * kGroupTile, token);
    ptx::copy_async_commit();
    ptx::copy_async_wait<1>();
    __syncthreads();  // the tile has arrived for all threads
    multiply(stages[current], int(first_value(p.w, tile) & 7), acc);
    __syncthreads();  // nobody reads the stage that the next iteration refills
  }
  store<kNTile>(p, acc, token);
}

/// y = finish(sum of partials in split order).
__global__ void reduce_kernel(const float* __restrict__ partials, int split, int64_t count, int64_t m,
                              Epilogue epilogue, __half* y) {
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= count) return;
  float sum = 0;
  for (int s = 0; s < split; ++s) sum += partials[s * count + index];
  const float bias = epilogue.bias ? __half2float(epilogue.bias[index % m]) : 0.0f;
  y[index] = finish(sum, bias, epilogue, index);
}

template <int kNTile>
void launch(const SmbdPlan& plan, const SmbdParams& params, cudaStream_t stream) {
  static_assert(smbd_shared_bytes(kNTile) == 2 * sizeof(SmbdStage<kNTile>));
  static_assert(smbd_shared_bytes(kNTile) <= 48 * 1024);  // above, the limit would have to be raised first
  const dim3 grid(unsigned(plan.row_blocks), unsigned(plan.split), unsigned(plan.n_blocks));
  smbd_kernel<kNTile><<<grid, kThreads, size_t(plan.shared_bytes), stream>>>(params);
  SPINFER_LAUNCH_CHECK("smbd_kernel");
}

}  // namespace

void spmm_smbd(Context& context, const LinearArgs& args) {
  if (args.n == 0) return;
  const TcaBmeView& w = args.w.packed;
  check(w.bitmaps && w.m == args.w.m && w.k == args.w.k,
        "SMBD {}×{}: the weight has no canonical TCA-BME arrays", args.w.m, args.w.k);
  check(reinterpret_cast<uintptr_t>(w.values) % 16 == 0, "SMBD: values must be 16-byte aligned");
  constexpr int kMaxTokens = 65535 * 64;  // grid.z
  check(args.n <= kMaxTokens, "SMBD: {} tokens, at most {}", args.n, kMaxTokens);
  const SmbdPlan plan = plan_smbd(w.m, w.k, args.n, context.facts());
  SmbdParams params{};
  params.w = w;
  params.x = reinterpret_cast<const __half*>(args.x);
  params.n = args.n;
  params.x_vectors = w.k % 8 == 0 && reinterpret_cast<uintptr_t>(args.x) % 16 == 0;
  params.y = reinterpret_cast<__half*>(args.y);
  params.epilogue = epilogue_of(args);
  if (plan.split > 1) params.partials = static_cast<float*>(context.workspace(plan.workspace_bytes));
  switch (plan.n_tile) {
    case 8:
      launch<8>(plan, params, context.stream());
      break;
    case 16:
      launch<16>(plan, params, context.stream());
      break;
    case 32:
      launch<32>(plan, params, context.stream());
      break;
    default:
      launch<64>(plan, params, context.stream());
  }
  if (plan.split > 1) {
    const int64_t count = int64_t(args.n) * w.m;
    reduce_kernel<<<unsigned((count + 255) / 256), 256, 0, context.stream()>>>(
        params.partials, plan.split, count, w.m, params.epilogue, params.y);
    SPINFER_LAUNCH_CHECK("reduce_kernel");
  }
}

}  // namespace spinfer::cuda
