#include "kernels/cuda/linear_plan.h"

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

LinearKernel choose_linear_kernel(const LinearProblem& problem, const GpuFacts&) {
  if (problem.dense) return LinearKernel::dense;
  check(problem.canonical || problem.streams, "linear {}×{}: the weight has no arrays on the device",
        problem.m, problem.k);
  if (problem.n <= kDecodeTokens) return problem.streams ? LinearKernel::stream : LinearKernel::smbd;
  return LinearKernel::scratch;
}

}  // namespace spinfer::cuda
