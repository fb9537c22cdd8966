// The answer to one request as it grows: text, log-probabilities, and when it ends.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/request.h"
#include "engine/stop_strings.h"
#include "tokenizer/tokenizer.h"

namespace spinfer {

class RequestOutput {
 public:
  /// `tokenizer` may be null: no text then. It and `eos_ids` must outlive the output.
  RequestOutput(RequestId id, std::span<const int32_t> prompt, const SamplingParams& params,
                const Tokenizer* tokenizer, std::span<const int32_t> eos_ids);

  /// Log-probability of the prompt's token at `position` ≥ 1.
  void add_score(int64_t position, float logprob) { scores_[size_t(position - 1)] = logprob; }
  /// The prompt is done: hands out its scores, and the most probable next tokens.
  void finish_prompt(std::vector<TopLogprob> last_top);
  bool prompt_finished() const { return prompt_finished_; }

  /// A sampled token. Afterwards `finished()` tells whether it was the last one.
  void add_token(TokenLogprob token);
  /// Ends the answer from outside.
  void end(FinishReason reason, std::string error = {});
  bool finished() const { return update_.finish != FinishReason::none; }

  /// What has changed since the last call.
  RequestUpdate take_update();

 private:
  bool is_eos(int32_t token) const;

  SamplingParams params_;
  std::span<const int32_t> eos_ids_;
  int32_t text_vocab_ =
      0;  // ids from here on have no text: the embedding may have more rows than the tokenizer pieces
  std::optional<IncrementalDecoder> decoder_;
  StopStrings stops_;
  std::vector<float> scores_;  // [prompt - 1], if asked for
  int tokens_ = 0;
  bool prompt_finished_ = false;
  RequestUpdate update_;
};

}  // namespace spinfer
