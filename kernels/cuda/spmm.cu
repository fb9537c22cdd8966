// The host's side of the Hopper SpMM (spmm_stream.cu): what a launch needs, and which instance it is.
#include "kernels/cuda/spmm.h"

#include <limits>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/linear_plan.h"
#include "kernels/cuda/spmm_fetch.cuh"
#include "kernels/cuda/tensor_map.h"

namespace spinfer::cuda {
namespace {

using namespace spmm;

static_assert(kStreamMaxTokens <= kMostDeferringTokens);

/// What does not depend on the call.
Problem problem_of(const StripStreamView& w, const SpmmPlan& plan) {
  const StripShape& shape = w.shape;
  Problem p{};
  p.shape = shape;
  p.records = w.records;
  p.places = w.places;
  p.values = w.values;
  p.strips = int(shape.strips());
  p.blocks = shape.blocks();
  p.fewest_blocks = shape.blocks() / shape.chunks;
  p.extra_blocks = shape.blocks() % shape.chunks;
  p.record_bytes = shape.record_bytes();
  p.split = SpmmSplit::of(plan.units, shape.chunks, plan.grid);
  return p;
}

__global__ void run_starts_kernel(const Problem p, RunStart* runs) {
  runs[blockIdx.x * kSpmmWarps + threadIdx.x] = run_start(p, int(blockIdx.x), int(threadIdx.x));
}

}  // namespace

size_t run_start_bytes(const StripShape& shape, const GpuFacts& gpu) {
  return size_t(plan_spmm(shape, 1, gpu).grid) * kSpmmWarps * sizeof(RunStart);
}

void find_run_starts(Context& context, const StripStreamView& view, RunStart* runs) {
  const SpmmPlan plan = plan_spmm(view.shape, 1, context.facts());
  run_starts_kernel<<<unsigned(plan.grid), kSpmmWarps, 0, context.stream()>>>(problem_of(view, plan), runs);
  SPINFER_LAUNCH_CHECK("spmm run starts");
}

void spmm_stream(Context& context, const SpmmArgs& args) {
  const StripShape& shape = args.w.view.shape;
  const int most = context.deterministic() ? kDecodeTokens : kStreamMaxTokens;
  check(args.n >= 1 && args.n <= most, "stream SpMM {}×{}: {} tokens, legal are 1 to {}", shape.m, shape.k,
        args.n, most);
  check(!args.gated || (shape.paired && !args.residual && !args.fp32_out && !args.norm_of_y),
        "stream SpMM {}×{}: gated, but its strips are no pairs or there is a residual, a norm or fp32 output",
        shape.m, shape.k);
  check(!args.norm_of_y || !args.fp32_out, "stream SpMM {}×{}: a norm of fp32 output", shape.m, shape.k);
  const int tokens = context.deterministic() ? most : args.n;
  const SpmmPlan plan = plan_spmm(shape, tokens, context.facts());
  Problem p = problem_of(args.w.view, plan);
  p.runs = args.w.runs;
  const int room = x_room(plan.n_tile), stages = (shape.max_chunk_blocks() + room - 1) / room;
  p.x_blocks = (shape.max_chunk_blocks() + stages - 1) / stages;
  p.n = args.n;
  p.x = reinterpret_cast<const __half*>(args.x);
  p.epilogue = {reinterpret_cast<const __half*>(args.bias), reinterpret_cast<const __half*>(args.residual),
                args.act};
  p.slow_activation = args.act != Activation::none && args.act != Activation::relu;
  p.lowest = args.act == Activation::relu ? 0.0f : -std::numeric_limits<float>::infinity();
  p.y = args.y;
  p.fp32_out = args.fp32_out;
  p.gated = args.gated;
  if (const DeferredNorm* norm = args.norm_of_x)
    p.norm_of_x = {reinterpret_cast<const unsigned long long*>(norm->moments),
                   1.0f / (float(1 << kMomentFractionBits) * float(shape.k)),
                   norm->eps,
                   norm->bound,
                   norm->gain_product,
                   norm->bias_product};
  if (const DeferredNorm* norm = args.norm_of_y)
    p.norm_of_y = {reinterpret_cast<unsigned long long*>(norm->moments), norm->kind == NormKind::layer,
                   1.0f / norm->bound, reinterpret_cast<const __half*>(norm->gain),
                   reinterpret_cast<__half*>(norm->x)};
  p.partials = static_cast<float4*>(context.partial_sums());
  CUtensorMap map{};
  p.for_racecheck = context.for_racecheck;
  p.x_by_copy = uses_wgmma(plan.n_tile)
                    ? make_activation_map(map, args.x, args.n, shape.k, plan.n_tile)
                    : shape.k % kBlockColumns == 0 && reinterpret_cast<uintptr_t>(args.x) % 16 == 0;
  switch (plan.n_tile) {
    case 8:
      return launch<8>(p, plan.grid, map, context.stream());
    case 16:
      return launch<16>(p, plan.grid, map, context.stream());
    case 32:
      return launch<32>(p, plan.grid, map, context.stream());
    case 64:
      return launch<64>(p, plan.grid, map, context.stream());
    default:
      return launch<96>(p, plan.grid, map, context.stream());
  }
}

}  // namespace spinfer::cuda
