#include "engine/apps/sequence_scores.h"

#include <unordered_map>

#include "engine/apps/interrupt.h"
#include "kernels/check.h"

namespace spinfer {

std::vector<SequenceScore> score_sequences(Engine& engine,
                                           const std::vector<std::span<const int32_t>>& sequences, int top,
                                           ProgressBar& bar) {
  SamplingParams params;
  params.max_tokens = 0;
  params.prompt_logprobs = true;
  params.logprobs = top;
  std::unordered_map<RequestId, size_t> index;
  for (size_t i = 0; i < sequences.size(); ++i)
    index[engine.add_request({sequences[i].begin(), sequences[i].end()}, params)] = i;
  std::vector<SequenceScore> scores(sequences.size());
  int64_t done = 0;
  while (engine.has_work()) {
    stop_if_interrupted();
    for (auto& update : engine.step()) {
      if (update.finish == FinishReason::error) throw Error(update.error);
      SequenceScore& score = scores[index.at(update.id)];
      if (!update.prompt_logprobs.empty()) score.token_logprobs = std::move(update.prompt_logprobs);
      if (!update.last_top.empty()) score.last_top = std::move(update.last_top);
      if (update.finish != FinishReason::none) bar.update(++done, int64_t(sequences.size()));
    }
  }
  return scores;
}

}  // namespace spinfer
