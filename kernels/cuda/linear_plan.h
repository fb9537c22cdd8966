// Which kernel multiplies a weight with n tokens. Pure functions: tested without a GPU, printable.
#pragma once

#include <cstdint>
#include <string_view>

namespace spinfer::cuda {

struct GpuFacts;

enum class LinearKernel {
  dense,    ///< cuBLAS(Lt) on a dense weight (dense_linear.h)
  smbd,     ///< portable SpMM on the canonical arrays (spmm_smbd.h)
  stream,   ///< Hopper SpMM on the strip streams, n ≤ kStreamMaxTokens (spmm.h)
  scratch,  ///< decode to a one-matrix dense scratch, then cuBLASLt
  fused,    ///< Hopper prefill: decode into wgmma's A registers, X through TMA (spmm_prefill.h)
};
std::string_view to_string(LinearKernel kernel);

/// A weight with the arrays it has on the device, and the tokens it meets.
struct LinearProblem {
  int64_t m = 0;
  int64_t k = 0;
  int n = 0;
  bool dense = false;
  bool canonical = false;  ///< the TCA-BME arrays are on the device
  bool streams = false;    ///< the strip streams are
};

/// False where this build has no sm_90a code.
#ifdef SPINFER_SM90A
inline constexpr bool kBuiltForHopper = true;
#else
inline constexpr bool kBuiltForHopper = false;
#endif

/// The most tokens of smbd, whose largest tile they are, and the pieces that a deterministic context
/// multiplies in.
inline constexpr int kDecodeTokens = 64;

/// Whether the kernel is right for the problem on this GPU (not whether it is the fastest).
bool can_run(LinearKernel kernel, const LinearProblem& problem, const GpuFacts& gpu);

/// The fastest kernel that can run it. Throws `Error` for a weight with no arrays at all.
LinearKernel choose_linear_kernel(const LinearProblem& problem, const GpuFacts& gpu);

}  // namespace spinfer::cuda
