// One way to launch a kernel: queued on the context's stream as a programmatic dependent launch, so that a
// kernel's blocks are placed while the one before still drains.
//
// A kernel launched so calls `wait_for_predecessor()` in every thread before it reads or writes global
// memory (weights it may read: no op writes them), and before it returns: then kernels of the stream complete
// in order, and the memory of a finished op may be reused.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"

namespace spinfer::cuda {

/// Blocks until everything queued before is complete and visible.
__device__ inline void wait_for_predecessor() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// From here on the next kernel's blocks may be placed beside this one's.
__device__ inline void let_successor_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;  ///< dynamic
  int cluster = 1;          ///< blocks of a cluster, along x (sm_90)
};

/// `name` is for error messages. Nothing is launched where the grid is empty.
template <class... Params, class... Args>
void launch(const Context& context, const char* name, void (*kernel)(Params...), const LaunchShape& shape,
            Args&&... args) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {unsigned(shape.cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = context.stream();
  config.attrs = attributes;
  config.numAttrs = context.facts().compute_capability < 90 ? 0 : shape.cluster > 1 ? 2 : 1;
  check_call(cudaLaunchKernelEx(&config, kernel, Params(std::forward<Args>(args))...), name, __FILE__,
             __LINE__);
}

/// 16 bytes of activations: the unit of vectorised access. Copied as words: copied pair by pair (__half2 has
/// a copy constructor of its own) each access would be four of 4 bytes. Functions take it by value for the
/// same reason.
struct alignas(16) Vec8 {
  __half2 pairs[4];

  Vec8() = default;
  __device__ Vec8(const Vec8& other) { *this = other; }
  __device__ Vec8& operator=(const Vec8& other) {
    *reinterpret_cast<uint4*>(this) = *reinterpret_cast<const uint4*>(&other);
    return *this;
  }
};
inline constexpr int kVec = 8;

/// True where rows of `width` halves at these addresses can be read 16 bytes at a time. Null counts as
/// aligned.
template <class... Pointers>
bool vectorisable(int64_t width, Pointers... pointers) {
  const uintptr_t bits = (uintptr_t{0} | ... | reinterpret_cast<uintptr_t>(pointers));
  return width % kVec == 0 && bits % sizeof(Vec8) == 0;
}

__host__ __device__ inline const __half* device_half(const Half* pointer) {
  return reinterpret_cast<const __half*>(pointer);
}
__host__ __device__ inline __half* device_half(Half* pointer) {
  return reinterpret_cast<__half*>(pointer);
}

}  // namespace spinfer::cuda
