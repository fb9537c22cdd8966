#include "kernels/cuda/linear_plan.h"

#include <array>

#include "kernels/check.h"
#include "kernels/cuda/context.h"

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

bool can_run(LinearKernel kernel, const LinearProblem& p, const GpuFacts&) {
  switch (kernel) {
    case LinearKernel::dense:
      return p.dense;
    case LinearKernel::smbd:
    case LinearKernel::scratch:
      return !p.dense && p.canonical;
    case LinearKernel::stream:
    case LinearKernel::fused:
      return false;
  }
  return false;
}

LinearKernel choose_linear_kernel(const LinearProblem& p, const GpuFacts& gpu) {
  const auto kinds = p.n <= kDecodeTokens
                         ? std::array{LinearKernel::dense, LinearKernel::stream, LinearKernel::smbd}
                         : std::array{LinearKernel::dense, LinearKernel::fused, LinearKernel::scratch};
  for (const LinearKernel kernel : kinds)
    if (can_run(kernel, p, gpu)) return kernel;
  fail("linear {}×{}: the weight has no arrays that a kernel of this device reads", p.m, p.k);
}

}  // namespace spinfer::cuda
