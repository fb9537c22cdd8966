// What a caller asks for and what comes back.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/ops.h"

namespace spinfer {

using RequestId = uint64_t;

constexpr int kMaxLogprobs = 128;  ///< alternatives listed per token: bounds the device's lists
constexpr int kMaxStopStrings = 16;
constexpr int kMaxStopBytes = 4096;
constexpr int kMaxLogitBiases = 300;
constexpr double kLowestRepeatPenalty = 0.01;  ///< logits divided by less may become infinite

/// `check_sampling_params` throws `Error` naming the field where a range is left.
struct SamplingParams {
  int max_tokens = 128;                    ///< ≥ 1; 0 only with prompt_logprobs
  float temperature = 0.8f;                ///< 0…100; 0 = greedy
  int top_k = 40;                          ///< ≥ 0; 0 = off
  float top_p = 0.95f;                     ///< (0, 1]
  float min_p = 0;                         ///< [0, 1]
  float repeat_penalty = 1;                ///< at least kLowestRepeatPenalty
  std::vector<TokenBias> logit_bias = {};  ///< by rising id; each -100…100; at most kMaxLogitBiases
  std::optional<uint64_t> seed = {};       ///< none: drawn from the engine's seed and the request's number
  std::vector<std::string> stop = {};      ///< output ends before the first of these; needs a tokenizer
  bool ignore_eos = false;
  int logprobs = -1;             ///< ≥ 0: log-probability of each new token and of this many alternatives
  bool prompt_logprobs = false;  ///< log-probability of prompt tokens 1…n-1, and RequestUpdate::last_top
};

/// Checks every field against its range; `Engine::add_request` does so too.
void check_sampling_params(const SamplingParams& params);

struct TopLogprob {
  int32_t id;
  float logprob;
};
struct TokenLogprob {
  int32_t id = -1;
  float logprob = 0;
  std::vector<TopLogprob> top;  ///< best first
};

enum class FinishReason { none, stop, length, cancelled, error };
const char* to_string(FinishReason reason);  ///< "stop", "length", …

/// What one step added to a request.
struct RequestUpdate {
  RequestId id = 0;
  std::vector<int32_t> new_ids;  ///< end-of-text ids are not among them
  int64_t sampled_tokens = 0;    ///< new ids, and an end-of-text id
  std::string new_text;          ///< whole UTF-8 characters; text that may begin a stop string is held back
  std::vector<TokenLogprob> logprobs;  ///< one per new id if asked for
  std::vector<float> prompt_logprobs;  ///< once, when the prompt is done: n-1 numbers
  std::vector<TopLogprob> last_top;    ///< with them, if logprobs ≥ 0: that many most probable next tokens
  int64_t cached_prompt_tokens = 0;    ///< of the prompt, found in the prefix cache; in the last update
  FinishReason finish = FinishReason::none;
  std::string error;  ///< the cause, with FinishReason::error
};

/// Seconds since the request arrived.
struct RequestTimes {
  double first_scheduled = 0;
  double first_token = 0;
  double finished = 0;
};

}  // namespace spinfer
