#include "kernels/cuda/linear_plan.h"

#include <array>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/spmm_prefill.h"

namespace spinfer::cuda {

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
      return hopper && p.streams && p.n <= kDecodeTokens;
    case LinearKernel::fused:
      return hopper && p.streams && plan_prefill({p.m, p.k, p.chunks}, p.max_height, p.n, gpu).runs();
  }
  return false;
}

LinearKernel choose_linear_kernel(const LinearProblem& p, const GpuFacts& gpu) {
  // Scratch costs a pass over the dense matrix whatever n is (28672×8192 on an H200: about 0.2 ms), fused a
  // share of the multiplication: 0.60 of cuBLAS's speed at 512 tokens and 0.66 at 2048 in its first measured
  // form.
  constexpr int kFusedTokens = 1024;
  std::array kinds{LinearKernel::dense, LinearKernel::stream, LinearKernel::smbd};
  if (p.n > kFusedTokens) {
    kinds = {LinearKernel::dense, LinearKernel::scratch, LinearKernel::fused};
  } else if (p.n > kDecodeTokens) {
    kinds = {LinearKernel::dense, LinearKernel::fused, LinearKernel::scratch};
  }
  for (const LinearKernel kernel : kinds)
    if (can_run(kernel, p, gpu)) return kernel;
  fail("linear {}×{}: the weight has no arrays that a kernel of this device reads", p.m, p.k);
}

}  // namespace spinfer::cuda
