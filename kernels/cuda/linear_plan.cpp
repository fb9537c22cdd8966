#include "kernels/cuda/linear_plan.h"

#include <span>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/spmm_plan.h"

namespace spinfer::cuda {
namespace {

/// The most tokens for which the fused kernel is faster than the scratch. Share of cuBLAS's speed at 50 / 60
/// / 70 % zeros on an H200, geometric mean of nine large matrices
/// (scripts/results/h200_linear_prefill.json):
///   tokens       128          256          512          1024         2048
///   fused    .82 .85 .87  .83 .84 .86  .81 .83 .84  .83 .84 .86  .82 .83 .85
///   scratch  .37 .38 .40  .46 .48 .49  .62 .64 .65  .76 .78 .79  .87 .87 .87
constexpr int kFusedTokens = 1024;

}  // namespace

std::string_view to_string(LinearKernel kernel) {
  switch (kernel) {
    case LinearKernel::dense:
      return "dense";
    case LinearKernel::smbd:
      return "smbd";
    case LinearKernel::stream:
      return "stream";
    case LinearKernel::scratch:
      return "scratch";
    case LinearKernel::fused:
      return "fused";
  }
  return "?";
}

bool can_run(LinearKernel kernel, const LinearProblem& p, const GpuFacts& gpu) {
  const bool hopper = kBuiltForHopper && gpu.compute_capability == 90;
  switch (kernel) {
    case LinearKernel::dense:
      return p.dense;
    case LinearKernel::smbd:
      return !p.dense && p.canonical;
    case LinearKernel::scratch:
      return !p.dense && (p.canonical || p.streams);
    case LinearKernel::stream:
      return hopper && p.streams && p.n <= kStreamMaxTokens;
    case LinearKernel::fused:
      return hopper && p.streams;
  }
  return false;
}

LinearKernel choose_linear_kernel(const LinearProblem& p, const GpuFacts& gpu) {
  constexpr LinearKernel kFew[] = {LinearKernel::dense, LinearKernel::stream, LinearKernel::smbd};
  constexpr LinearKernel kMore[] = {LinearKernel::dense, LinearKernel::stream, LinearKernel::fused,
                                    LinearKernel::scratch};
  constexpr LinearKernel kMany[] = {LinearKernel::dense, LinearKernel::scratch, LinearKernel::fused};
  const std::span<const LinearKernel> kinds = p.n <= kDecodeTokens  ? std::span<const LinearKernel>(kFew)
                                              : p.n <= kFusedTokens ? std::span<const LinearKernel>(kMore)
                                                                    : std::span<const LinearKernel>(kMany);
  for (const LinearKernel kernel : kinds)
    if (can_run(kernel, p, gpu)) return kernel;
  fail("linear {}×{}: the weight has no arrays that a kernel of this device reads", p.m, p.k);
}

}  // namespace spinfer::cuda
