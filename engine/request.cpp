#include "engine/request.h"

#include <cmath>

#include "kernels/check.h"

namespace spinfer {

const char* to_string(FinishReason reason) {
  switch (reason) {
    case FinishReason::none:
      return "none";
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::cancelled:
      return "cancelled";
    case FinishReason::error:
      return "error";
  }
  return "unknown";
}

void check_sampling_params(const SamplingParams& p) {
  const int fewest = p.prompt_logprobs ? 0 : 1;
  check(p.max_tokens >= fewest, "max_tokens {}: must be at least {}", p.max_tokens, fewest);
  // Written so that NaN fails.
  check(p.temperature >= 0 && p.temperature <= 100, "temperature {}: must be 0 to 100", p.temperature);
  check(p.top_k >= 0, "top_k {}: must be at least 0 (0 = off)", p.top_k);
  check(p.top_p > 0 && p.top_p <= 1, "top_p {}: must be more than 0 and at most 1", p.top_p);
  check(p.min_p >= 0 && p.min_p <= 1, "min_p {}: must be 0 to 1", p.min_p);
  check(p.repeat_penalty >= float(kLowestRepeatPenalty) && std::isfinite(p.repeat_penalty),
        "repeat_penalty {}: must be at least {}", p.repeat_penalty, kLowestRepeatPenalty);
  check(p.logit_bias.size() <= size_t(kMaxLogitBiases), "logit_bias of {} tokens: at most {} are possible",
        p.logit_bias.size(), kMaxLogitBiases);
  int32_t last = -1;
  for (const auto [id, bias] : p.logit_bias) {
    check(id > last, "logit_bias of token {} after that of token {}: ids must rise from 0 on", id, last);
    check(bias >= -100 && bias <= 100, "logit_bias {} of token {}: must be -100 to 100", bias, id);
    last = id;
  }
  check(p.logprobs >= -1 && p.logprobs <= kMaxLogprobs, "logprobs {}: must be 0 to {}", p.logprobs,
        kMaxLogprobs);
  check(p.stop.size() <= size_t(kMaxStopStrings), "{} stop strings: at most {} are possible", p.stop.size(),
        kMaxStopStrings);
  for (const std::string& stop : p.stop) {
    check(!stop.empty(), "stop string is empty: it must have at least one character");
    check(stop.size() <= size_t(kMaxStopBytes), "stop string of {} bytes: at most {} are possible",
          stop.size(), kMaxStopBytes);
    check((uint8_t(stop[0]) & 0xc0) != 0x80, "stop string begins inside a UTF-8 character");
  }
}

}  // namespace spinfer
