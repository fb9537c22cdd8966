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
      return hopper && p.streams && plan_prefill({p.m, p.k, p.chunks}, p.max_chunk_rows, p.n, gpu).runs();
  }
  return false;
}

LinearKernel choose_linear_kernel(const LinearProblem& p, const GpuFacts& gpu) {
  // Share of cuBLAS's speed at 50 / 70 % zeros on an H200, geometric mean of nine large matrices
  // (scripts/results/h200_linear_prefill.json):
  //   tokens     128        256        512        1024       2048
  //   fused    .80 .84    .84 .91    .78 .84    .79 .86    .80 .85
  //   scratch  .36 .39    .47 .49    .62 .65    .77 .79    .86 .88
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
