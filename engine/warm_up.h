// Steps that stand for all that serving meets. Run once before users come, so that no request waits while
// something is tuned, recorded or allocated for a step of its size. Pure functions.
#pragma once

#include <vector>

#include "engine/batch.h"
#include "engine/memory_plan.h"

namespace spinfer {

/// What a step of the warm-up is made of: `sequences` of `tokens` tokens each, which sample. Nothing of it is
/// stored. `context` is the longest sequence it is prepared for; they have no more than their tokens, so that
/// no time is lost on reading.
struct WarmUpStep {
  int sequences = 0;
  int tokens = 0;
  int64_t context = 0;
  friend auto operator<=>(const WarmUpStep&, const WarmUpStep&) = default;
};

/// Every decode shape, and for each token_bucket a step with that many tokens and, as far as there can be so
/// many sequences, one with that many logits.
std::vector<WarmUpStep> warm_up_steps(const StepLimits& limits, int64_t max_model_len, int block_size);

/// Reads block 0 alone, whatever is in it.
Batch warm_up_batch(const WarmUpStep& step, int block_size);

}  // namespace spinfer
