// Hopper instructions of prefill attention beyond ptx_hopper.cuh: wgmma with both operands in shared memory,
// or with B stored along N; boxes of three-dimensional tensor maps.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx_hopper.cuh"

namespace spinfer::cuda::ptx {

/// The box of `map` at (x, y, z), swizzled as the map says; completes on `barrier`.
__device__ inline void copy_box_3d(uint32_t shared, const CUtensorMap* map, int x, int y, int z,
                                   uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, "
      "%4}], [%5];" ::"r"(shared),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
}

/// Keeps the compiler from moving uses of wgmma's registers across this point.
template <int kSize>
__device__ inline void pin(float (&registers)[kSize]) {
#pragma unroll
  for (float& x : registers) asm volatile("" : "+f"(x)::"memory");
}

/// Descriptor of a B operand stored along N: rows (of K) of 64 halves (128 bytes) with 128-byte swizzle, 8
/// rows a kilobyte; `plane` bytes between one 64 columns and the next. The address is 1024-byte aligned.
__device__ inline uint64_t transposed_operand(uint32_t address, uint32_t plane) {
  constexpr uint32_t kStride = 1024 / 16, kSwizzle128 = 1u << 30;
  uint64_t descriptor;
  asm("mov.b64 %0, {%1, %2};"
      : "=l"(descriptor)
      : "r"((address >> 4 & 0x3fffu) | plane >> 4 << 16), "n"(kStride | kSwizzle128));
  return descriptor;
}

/// d (64×128, fp32) = a (64×16) · b (16×128), added to d where `accumulate`; both in shared memory, K-major.
__device__ inline void wgmma_shared_128(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{\n\t.reg .pred accumulate;\n\tsetp.ne.b32 accumulate, %66, 0;\n\t"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" SPINFER_WGMMA_NAMES_64
      "}, %64, %65, accumulate, 1, 1, 0, 0;\n\t}"
      : SPINFER_WGMMA_SUMS_64(d)
      : "l"(a), "l"(b), "r"(int(accumulate)));
}

/// d (64×N, fp32; N/2 registers a lane) += a (64×16 fp16, a warp has 16 rows) · b (16×N, shared memory, along
/// N).
template <int kN>
__device__ inline void wgmma_transposed(float (&d)[kN / 2], const uint32_t* a, uint64_t b);

template <>
__device__ inline void wgmma_transposed<64>(float (&d)[32], const uint32_t* a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" SPINFER_WGMMA_NAMES_32
               "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
               : SPINFER_WGMMA_SUMS_32(d)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <>
__device__ inline void wgmma_transposed<80>(float (&d)[40], const uint32_t* a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n80k16.f32.f16.f16 {" SPINFER_WGMMA_NAMES_40
               "}, {%40, %41, %42, %43}, %44, 1, 1, 1, 1;"
               : SPINFER_WGMMA_SUMS_40(d)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <>
__device__ inline void wgmma_transposed<96>(float (&d)[48], const uint32_t* a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n96k16.f32.f16.f16 {" SPINFER_WGMMA_NAMES_48
               "}, {%48, %49, %50, %51}, %52, 1, 1, 1, 1;"
               : SPINFER_WGMMA_SUMS_48(d)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <>
__device__ inline void wgmma_transposed<128>(float (&d)[64], const uint32_t* a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" SPINFER_WGMMA_NAMES_64
               "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
               : SPINFER_WGMMA_SUMS_64(d)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

}  // namespace spinfer::cuda::ptx
