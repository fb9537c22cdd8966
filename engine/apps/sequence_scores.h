// Log-probabilities that an engine gives to sequences of tokens: what `score` and `perplexity` are made of.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/apps/progress.h"
#include "engine/engine.h"

namespace spinfer {

struct SequenceScore {
  std::vector<float> token_logprobs;  ///< of tokens 1…n-1, each after those before it
  std::vector<TopLogprob> last_top;   ///< the most probable tokens after the last one, best first
};

/// One score per sequence, in order, all of them batched. `top`: length of each `last_top`; -1 = none. Throws
/// `Error` with the cause if a sequence is refused or fails, `Interrupted` after SIGINT.
std::vector<SequenceScore> score_sequences(Engine& engine,
                                           const std::vector<std::span<const int32_t>>& sequences, int top,
                                           ProgressBar& bar);

}  // namespace spinfer
