// What a GPU rank takes beside weights, KV cache and activations: for plans made without a GPU, and for the
// backend that takes it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace spinfer {

/// A CUDA context, the program's kernels, cuBLAS: what the driver counts before anything of ours is
/// allocated. Measured on an H200 with CUDA 13: 0.70 to 0.77 GB.
inline constexpr int64_t kGpuContextBytes = int64_t{730} << 20;

/// Scratch lent to cuBLAS and cuBLASLt: NVIDIA's recommendation for Hopper.
inline constexpr int64_t kGpuBlasWorkspaceBytes = int64_t{32} << 20;

/// Partial sums of the decode SpMM, beside packed weights: 192 KiB for each of an H200's multiprocessors.
inline constexpr int64_t kGpuPartialSumBytes = int64_t{132} * (192 << 10);

/// A packed weight's device layout takes this much more than the size formula says. Measured at 60 % zeros.
inline constexpr double kGpuLayoutOverhead = 0.026;

/// Workspace reserved for a linear: a packed one is decoded to a dense matrix for long prompts.
constexpr int64_t gpu_linear_workspace_bytes(int64_t m, int64_t k, bool packed) {
  return packed ? 2 * m * k : 0;
}

}  // namespace spinfer
