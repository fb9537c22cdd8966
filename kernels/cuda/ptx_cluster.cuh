// Hopper instructions of the prefill kernel beyond ptx_hopper.cuh: clusters, multicast, wide wgmma, register
// budgets.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx_hopper.cuh"

namespace spinfer::cuda::ptx {

__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
/// All threads of the cluster.
__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}
/// The same in two halves, for warps that come to the second from different places.
__device__ inline void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
__device__ inline void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
/// The address, among the cluster's, of what lies at `shared` in block `rank`.
__device__ inline uint32_t address_in_block(uint32_t shared, uint32_t rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared), "r"(rank));
  return address;
}
/// Arrival at a barrier of the cluster. Relaxed: it orders nothing but what wgmma has read; a release at
/// cluster scope would be a MEMBAR.GPU, a microsecond, per arrival.
__device__ inline void barrier_arrive_remote(uint32_t barrier) {
  asm volatile("mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// The box of `map` at (column, row) to the same place in every block of the cluster that `mask` names;
/// completes on the barrier at the same place in each.
__device__ inline void copy_box_multicast(uint32_t shared, const CUtensorMap* map, int column, int row,
                                          uint32_t barrier, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(mask)
      : "memory");
}

__device__ inline int load_acquire(const int* flag) {
  int value;
  asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
__device__ inline void store_release(int* flag, int value) {
  asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

template <>
__device__ inline void wgmma<128>(float (&d)[64], const uint32_t* a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" SPINFER_WGMMA_NAMES_64
               "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
               : SPINFER_WGMMA_SUMS_64(d)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <>
__device__ inline void wgmma<256>(float (&d)[128], const uint32_t* a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {" SPINFER_WGMMA_NAMES_128
               "}, {%128, %129, %130, %131}, %132, 1, 1, 1, 0;"
               : SPINFER_WGMMA_SUMS_128(d)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

}  // namespace spinfer::cuda::ptx
