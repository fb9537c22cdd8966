// Encode and decode of the canonical format on the GPU. One block of 8 warps per GroupTile; a warp takes
// every eighth BitmapTile; lane l holds bits 2l and 2l+1: row l/4, columns 2(l%4) and the next. Bound by
// reading or writing the dense matrix: 2 bytes a weight, plus 1/8 + 2(1−s).
#include <cub/device/device_scan.cuh>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/tca_bme_device.h"

namespace spinfer::cuda {
namespace {

constexpr int kWarps = 8;

/// First row and column of a BitmapTile of a GroupTile.
__device__ inline TilePosition origin_of(int bitmap) {
  return position_of({bitmap, 0});
}

/// Row and column in the matrix of lane's two weights of bitmap `b` of group tile `tile`.
struct LanePosition {
  int64_t row, col;
  __device__ LanePosition(int64_t tile, int64_t tiles_across, int bitmap, int lane) {
    const TilePosition origin = origin_of(bitmap);
    row = tile / tiles_across * kGroupTile + origin.row + lane / 4;
    col = tile % tiles_across * kGroupTile + origin.col + lane % 4 * 2;
  }
};

/// Spreads the 32 bits of x over the even bits of 64.
__device__ inline uint64_t spread(uint32_t x) {
  uint64_t v = x;
  v = (v | v << 16) & 0x0000ffff0000ffffull;
  v = (v | v << 8) & 0x00ff00ff00ff00ffull;
  v = (v | v << 4) & 0x0f0f0f0f0f0f0f0full;
  v = (v | v << 2) & 0x3333333333333333ull;
  return (v | v << 1) & 0x5555555555555555ull;
}

__global__ void count_kernel(const __half* __restrict__ dense, int64_t m, int64_t k, uint64_t* bitmaps,
                             uint64_t* counts) {
  __shared__ int total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();  // total is zero before any warp adds
  const int lane = threadIdx.x % 32;
  const int64_t tile = blockIdx.x, across = (k + kGroupTile - 1) / kGroupTile;
  for (int b = threadIdx.x / 32; b < kBitmapsPerGroupTile; b += kWarps) {
    const LanePosition p(tile, across, b, lane);
    const __half* w = dense + p.row * k + p.col;
    const bool low = p.row < m && p.col < k && (__half_as_ushort(w[0]) & 0x7fff);
    const bool high = p.row < m && p.col + 1 < k && (__half_as_ushort(w[1]) & 0x7fff);
    const uint32_t even = __ballot_sync(~0u, low), odd = __ballot_sync(~0u, high);
    if (lane == 0) {
      bitmaps[tile * kBitmapsPerGroupTile + b] = spread(even) | spread(odd) << 1;
      atomicAdd(&total, __popc(even) + __popc(odd));  // integers: the order does not matter
    }
  }
  __syncthreads();  // all warps have added
  if (threadIdx.x == 0) counts[tile] = uint64_t(total);
}

/// first[b] = values of the tile before bitmap b.
__device__ void scan_bitmaps(const uint64_t* tile_bitmaps, int* first) {
  if (threadIdx.x < 32) {
    const int lane = threadIdx.x;
    const int a = __popcll(tile_bitmaps[2 * lane]), b = __popcll(tile_bitmaps[2 * lane + 1]);
    int sum = a + b;
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(~0u, sum, d);
      if (lane >= d) sum += other;
    }
    first[2 * lane] = sum - a - b;
    first[2 * lane + 1] = sum - b;
  }
  __syncthreads();  // first[] is complete before any warp reads it
}

__device__ inline int64_t offset_of(const TcaBmeView& view, int64_t tile) {
  return view.offsets32 ? int64_t(view.offsets32[tile]) : int64_t(view.offsets64[tile]);
}

__global__ void gather_values_kernel(const __half* __restrict__ dense, TcaBmeView view, __half* values) {
  __shared__ int first[kBitmapsPerGroupTile];
  const int64_t tile = blockIdx.x, across = (view.k + kGroupTile - 1) / kGroupTile;
  const uint64_t* tile_bitmaps = view.bitmaps + tile * kBitmapsPerGroupTile;
  scan_bitmaps(tile_bitmaps, first);
  const int lane = threadIdx.x % 32;
  __half* out = values + offset_of(view, tile);
  for (int b = threadIdx.x / 32; b < kBitmapsPerGroupTile; b += kWarps) {
    const LanePosition p(tile, across, b, lane);
    const uint64_t bits = tile_bitmaps[b];
    int at = first[b] + __popcll(bits & ((uint64_t{1} << (2 * lane)) - 1));
    if (bits >> (2 * lane) & 1) out[at++] = dense[p.row * view.k + p.col];
    if (bits >> (2 * lane + 1) & 1) out[at] = dense[p.row * view.k + p.col + 1];
  }
}

__global__ void decode_kernel(TcaBmeView view, int64_t first_tile, int64_t begin, int64_t end, bool vectors,
                              __half* dense) {
  __shared__ int first[kBitmapsPerGroupTile];
  __shared__ alignas(16)
      __half turned[kGroupTile][kGroupTile + 8];  // rows of the tile: they leave as 16-byte vectors
  const int64_t tile = first_tile + blockIdx.x, across = (view.k + kGroupTile - 1) / kGroupTile;
  const uint64_t* tile_bitmaps = view.bitmaps + tile * kBitmapsPerGroupTile;
  scan_bitmaps(tile_bitmaps, first);
  const int lane = threadIdx.x % 32;
  const __half* values = reinterpret_cast<const __half*>(view.values) + offset_of(view, tile);
  for (int b = threadIdx.x / 32; b < kBitmapsPerGroupTile; b += kWarps) {
    const TilePosition origin = origin_of(b);
    const uint64_t bits = tile_bitmaps[b];
    int at = first[b] + __popcll(bits & ((uint64_t{1} << (2 * lane)) - 1));
    const __half zero = __ushort_as_half(0);
    const __half low = bits >> (2 * lane) & 1 ? values[at++] : zero;
    const __half high = bits >> (2 * lane + 1) & 1 ? values[at] : zero;
    *reinterpret_cast<__half2*>(&turned[origin.row + lane / 4][origin.col + lane % 4 * 2]) =
        __halves2half2(low, high);
  }
  __syncthreads();  // the tile is complete
  constexpr int kVectors = kGroupTile / 8;
  for (int i = threadIdx.x; i < kGroupTile * kVectors; i += kWarps * 32) {
    const int64_t row = tile / across * kGroupTile + i / kVectors,
                  col = tile % across * kGroupTile + i % kVectors * 8;
    if (row >= end || col >= view.k) continue;
    const __half* from = &turned[i / kVectors][i % kVectors * 8];
    __half* to = dense + (row - begin) * view.k + col;
    if (vectors && col + 8 <= view.k) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    } else {
      for (int j = 0; j < 8 && col + j < view.k; ++j) to[j] = from[j];
    }
  }
}

__global__ void narrow_offsets_kernel(const uint64_t* wide, uint32_t* narrow, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) narrow[i] = uint32_t(wide[i]);
}

/// SplitMix64's output function: a good hash of 64 bits.
__device__ inline uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

__global__ void random_kernel(__half* dense, int64_t count, float sparsity, float scale, uint64_t seed) {
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const uint64_t bits = mix(mix(seed) + 0x9e3779b97f4a7c15ull * uint64_t(i));
    const bool keep = float(mix(bits) >> 40) * 0x1p-24f >= sparsity;  // [0, 1): sparsity 0 keeps all, 1 none
    const float radius = sqrtf(-2.0f * logf((float(bits >> 40) + 1.0f) * 0x1p-24f));
    __half value = __float2half_rn(radius * cospif(float(bits & 0xffffff) * 0x1p-23f) * scale);
    // A kept weight that rounds to zero would be absent: it becomes the smallest normal number.
    if ((__half_as_ushort(value) & 0x7fff) == 0) value = __ushort_as_half(0x0400);
    dense[i] = keep ? value : __ushort_as_half(0);
  }
}

void set_offsets(DeviceTcaBme& matrix, const std::shared_ptr<void>& offsets) {
  if (fits_offsets32(matrix.view.nonzeros)) {
    matrix.view.offsets32 = static_cast<const uint32_t*>(offsets.get());
  } else {
    matrix.view.offsets64 = static_cast<const uint64_t*>(offsets.get());
  }
  matrix.storage.push_back(offsets);
}

std::shared_ptr<void> upload_array(Context& context, const void* host, size_t bytes, size_t slack = 0) {
  auto device = context.allocate_shared(bytes + slack);
  if (slack)
    SPINFER_CUDA_CHECK(cudaMemsetAsync(static_cast<char*>(device.get()) + bytes, 0, slack, context.stream()));
  context.upload(device.get(), host, bytes);
  return device;
}

constexpr size_t kValueSlack = 16;

}  // namespace

DeviceTcaBme upload_tca_bme(Context& context, const TcaBmeView& host) {
  context.activate();
  DeviceTcaBme matrix{host, {}};
  const size_t tiles = size_t(host.tiles());
  const auto bitmaps = upload_array(context, host.bitmaps, tiles * kBitmapsPerGroupTile * sizeof(uint64_t));
  const auto values = upload_array(context, host.values, size_t(host.nonzeros) * sizeof(Half), kValueSlack);
  matrix.view.bitmaps = static_cast<const uint64_t*>(bitmaps.get());
  matrix.view.values = static_cast<const Half*>(values.get());
  matrix.storage = {bitmaps, values};
  const size_t width = host.offsets32 ? sizeof(uint32_t) : sizeof(uint64_t);
  const void* host_offsets = host.offsets32 ? static_cast<const void*>(host.offsets32) : host.offsets64;
  const auto offsets = upload_array(context, host_offsets, (tiles + 1) * width);
  if (host.offsets32) {
    matrix.view.offsets32 = static_cast<const uint32_t*>(offsets.get());
  } else {
    matrix.view.offsets64 = static_cast<const uint64_t*>(offsets.get());
  }
  matrix.storage.push_back(offsets);
  return matrix;
}

DeviceTcaBme encode_on_device(Context& context, const Half* dense, int64_t m, int64_t k) {
  context.activate();
  const int64_t tiles = group_tiles(m) * group_tiles(k);
  check(m > 0 && k > 0 && tiles <= INT32_MAX, "encode {}×{}: at most {} group tiles", m, k, INT32_MAX);
  const auto* source = reinterpret_cast<const __half*>(dense);
  const cudaStream_t stream = context.stream();

  auto bitmaps = context.allocate_shared(size_t(tiles) * kBitmapsPerGroupTile * sizeof(uint64_t));
  auto wide = context.allocate_shared(size_t(tiles + 1) * sizeof(uint64_t));
  auto* offsets = static_cast<uint64_t*>(wide.get());
  SPINFER_CUDA_CHECK(cudaMemsetAsync(offsets, 0, size_t(tiles + 1) * sizeof(uint64_t), stream));
  count_kernel<<<unsigned(tiles), kWarps * 32, 0, stream>>>(source, m, k,
                                                            static_cast<uint64_t*>(bitmaps.get()), offsets);
  SPINFER_LAUNCH_CHECK("count_kernel");
  size_t scan_bytes = 0;
  SPINFER_CUDA_CHECK(cub::DeviceScan::ExclusiveSum(nullptr, scan_bytes, offsets, offsets, tiles + 1, stream));
  const auto scan = context.allocate_shared(scan_bytes);
  SPINFER_CUDA_CHECK(
      cub::DeviceScan::ExclusiveSum(scan.get(), scan_bytes, offsets, offsets, tiles + 1, stream));
  uint64_t nonzeros = 0;
  SPINFER_CUDA_CHECK(
      cudaMemcpyAsync(&nonzeros, offsets + tiles, sizeof nonzeros, cudaMemcpyDeviceToHost, stream));
  SPINFER_CUDA_CHECK(cudaStreamSynchronize(stream));

  DeviceTcaBme matrix;
  matrix.view.m = m;
  matrix.view.k = k;
  matrix.view.nonzeros = int64_t(nonzeros);
  matrix.view.bitmaps = static_cast<const uint64_t*>(bitmaps.get());
  matrix.storage.push_back(bitmaps);
  if (fits_offsets32(int64_t(nonzeros))) {
    auto narrow = context.allocate_shared(size_t(tiles + 1) * sizeof(uint32_t));
    narrow_offsets_kernel<<<unsigned((tiles + 256) / 256), 256, 0, stream>>>(
        offsets, static_cast<uint32_t*>(narrow.get()), tiles + 1);
    SPINFER_LAUNCH_CHECK("narrow_offsets_kernel");
    set_offsets(matrix, narrow);
  } else {
    set_offsets(matrix, wide);
  }
  const auto values = context.allocate_shared(size_t(nonzeros) * sizeof(Half) + kValueSlack);
  matrix.view.values = static_cast<const Half*>(values.get());
  matrix.storage.push_back(values);
  gather_values_kernel<<<unsigned(tiles), kWarps * 32, 0, stream>>>(source, matrix.view,
                                                                    static_cast<__half*>(values.get()));
  SPINFER_LAUNCH_CHECK("gather_values_kernel");
  SPINFER_CUDA_CHECK(cudaStreamSynchronize(stream));  // temporaries are freed on return
  return matrix;
}

void decode_on_device(Context& context, const TcaBmeView& device, int64_t begin, int64_t end, Half* dense) {
  check(begin % kGroupTile == 0 && begin <= end && end <= device.m,
        "decode rows {} … {}: of {}, in steps of {}", begin, end, device.m, kGroupTile);
  if (begin == end) return;
  const int64_t across = group_tiles(device.k);
  const int64_t tiles = group_tiles(end - begin) * across;
  check(tiles <= INT32_MAX, "decode {}×{}: at most {} group tiles", end - begin, device.k, INT32_MAX);
  const bool vectors = device.k % 8 == 0 && reinterpret_cast<uintptr_t>(dense) % 16 == 0;
  decode_kernel<<<unsigned(tiles), kWarps * 32, 0, context.stream()>>>(
      device, begin / kGroupTile * across, begin, end, vectors, reinterpret_cast<__half*>(dense));
  SPINFER_LAUNCH_CHECK("decode_kernel");
}

void fill_random_sparse(Context& context, Half* dense, int64_t m, int64_t k, double sparsity, float scale,
                        uint64_t seed) {
  context.activate();
  random_kernel<<<unsigned(context.facts().sm_count * 8), 256, 0, context.stream()>>>(
      reinterpret_cast<__half*>(dense), m * k, float(sparsity), scale, seed);
  SPINFER_LAUNCH_CHECK("random_kernel");
}

}  // namespace spinfer::cuda
