// logprobs: log-softmax of chosen tokens and of the most probable ones. One cluster (vocabulary.cuh) a row:
// two passes over the logits, and one for each listed token.
#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/cuda/fault.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/op_state.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vocabulary.cuh"

namespace spinfer::cuda {
namespace {

constexpr int kMaxGridRows = 65535;

/// What a row that cannot be sampled gets.
__device__ void mark_unusable(const LogprobsArgs& a, int64_t row) {
  if (a.targets && a.target_logprobs) a.target_logprobs[row] = NAN;
  for (int place = 0; place < a.top; ++place) {
    a.top_ids[row * a.top + place] = place;
    a.top_logprobs[row * a.top + place] = NAN;
  }
}

__global__ void __launch_bounds__(kRowThreads) logprobs_kernel(LogprobsArgs a, Fault* fault) {
  extern __shared__ __align__(16) float part_copy[];
  __shared__ uint64_t exchange[2];
  let_successor_start();
  wait_for_predecessor();
  RowTeam team(exchange);
  const int64_t row = blockIdx.y;
  const float* logits = a.logits + row * a.vocab;
  RowPart part = part_of(logits, a.vocab, team);
  float* copy = team.blocks() > 1 ? part_copy : nullptr;
  const uint64_t best = team.reduce(read_part(part, copy), Largest());  // its barriers make the copy visible
  if (copy) part.values = copy;
  if (!usable(best)) {
    if (team.leads()) mark_unusable(a, row);
    team.meet();  // nobody leaves while its shared memory is read
    return;
  }
  const float max = logit_of_rank(best);
  float sum = 0;
  part.for_each([&](int, float x) { sum += expf(x - max); });
  const double log_sum = log(team.reduce(double(sum), Sum()));
  const auto logprob = [&](float logit) { return float(double(logit) - double(max) - log_sum); };

  if (a.targets && a.target_logprobs && team.leads()) {
    const int target = a.targets[row];
    if (target >= a.vocab) raise_fault(fault, FaultKind::target_token, int(row), target, a.vocab);
    a.target_logprobs[row] = target < 0 || target >= a.vocab ? 0.0f : logprob(logits[target]);
  }
  uint64_t rank = best;
  for (int place = 0; place < a.top; ++place) {
    if (place > 0) {  // the best of those after the last one
      uint64_t next = 0;
      part.for_each([&](int i, float x) {
        const uint64_t candidate = rank_of(x, i);
        if (candidate < rank && candidate > next) next = candidate;
      });
      rank = team.reduce(next, Largest());
    }
    if (team.leads()) {
      a.top_ids[row * a.top + place] = id_of_rank(rank);
      a.top_logprobs[row * a.top + place] = logprob(logit_of_rank(rank));
    }
  }
  team.meet();  // nobody leaves while its shared memory is read
}

}  // namespace

void logprobs(DeviceContext& opaque, const LogprobsArgs& a) {
  check(a.top >= 0 && a.top <= a.vocab, "logprobs: top {} must be 0…{}, the vocabulary", a.top, a.vocab);
  check(a.vocab <= kMaxRowVocab, "logprobs: a vocabulary of {}: must be at most {}", a.vocab, kMaxRowVocab);
  Context& context = context_of(opaque);
  context.activate();
  LaunchShape shape = row_launch(context.facts(), a.n, a.vocab);
  SPINFER_CUDA_CHECK(cudaFuncSetAttribute(logprobs_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          int(shape.shared_bytes)));
  LogprobsArgs slice = a;
  for (int begin = 0; begin < a.n; begin += kMaxGridRows) {
    slice.n = std::min(kMaxGridRows, a.n - begin);
    shape.grid.y = unsigned(slice.n);
    launch(context, "logprobs", logprobs_kernel, shape, slice, context.op_state().fault());
    slice.logits += int64_t{slice.n} * a.vocab;
    if (a.targets) slice.targets += slice.n;
    if (a.target_logprobs) slice.target_logprobs += slice.n;
    if (a.top > 0) {
      slice.top_ids += int64_t{slice.n} * a.top;
      slice.top_logprobs += int64_t{slice.n} * a.top;
    }
  }
}

}  // namespace spinfer::cuda
