// logprobs: log-softmax of chosen tokens and of the most probable ones. One block a row: two passes over the
// logits, and one for each listed token. Bound by one SM's L2 bandwidth a row (128k logits: about 5 µs a
// pass).
#include <cmath>

#include "kernels/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/op_state.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vocabulary.cuh"

namespace spinfer::cuda {
namespace {

__global__ void __launch_bounds__(kRowThreads) logprobs_kernel(LogprobsArgs a, Fault* fault) {
  let_successor_start();
  wait_for_predecessor();
  const int64_t row = blockIdx.x;
  const float* logits = a.logits + row * a.vocab;
  const uint64_t best = best_or_fault(logits, a.vocab, fault);
  if (best == 0) return;
  const float max = logits[id_of_rank(best)];
  float sum = 0;
  for_each(logits, 0, a.vocab, [&](int, float x) { sum += expf(x - max); });
  const double log_sum = log(block_reduce(double(sum), [](double x, double y) { return x + y; }));
  const auto logprob = [&](int id) { return float(double(logits[id]) - double(max) - log_sum); };

  if (a.targets && a.target_logprobs && threadIdx.x == 0) {
    const int target = a.targets[row];
    if (target >= a.vocab) raise_fault(fault, FaultKind::target_token, int(row), target, a.vocab);
    a.target_logprobs[row] = target < 0 || target >= a.vocab ? 0.0f : logprob(target);
  }
  uint64_t rank = best;
  for (int place = 0; place < a.top; ++place) {
    if (place > 0) {  // the best of those after the last one
      uint64_t next = 0;
      for_each(logits, 0, a.vocab, [&](int i, float x) {
        const uint64_t candidate = rank_of(x, i);
        if (candidate < rank && candidate > next) next = candidate;
      });
      rank = block_reduce(next, [](uint64_t x, uint64_t y) { return x > y ? x : y; });
    }
    if (threadIdx.x == 0) {
      a.top_ids[row * a.top + place] = id_of_rank(rank);
      a.top_logprobs[row * a.top + place] = logprob(id_of_rank(rank));
    }
  }
}

}  // namespace

void logprobs(DeviceContext& opaque, const LogprobsArgs& a) {
  check(a.top >= 0 && a.top <= a.vocab, "logprobs: top {} must be 0…{}, the vocabulary", a.top, a.vocab);
  Context& context = context_of(opaque);
  context.activate();
  launch(context, "logprobs", logprobs_kernel, {dim3(unsigned(a.n)), dim3(kRowThreads)}, a,
         context.op_state().fault());
}

}  // namespace spinfer::cuda
