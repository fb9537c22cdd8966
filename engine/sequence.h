// A request as the scheduler, the batch and the sampler see it: its tokens, and how many of them are in the
// cache.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_set>
#include <vector>

#include "engine/request.h"

namespace spinfer {

/// The distinct tokens a sequence has, in order of first appearance: what a repetition penalty looks at.
class SeenTokens {
 public:
  void add(int32_t token) {
    if (set_.insert(token).second) order_.push_back(token);
  }
  std::span<const int32_t> tokens() const { return order_; }

 private:
  std::unordered_set<int32_t> set_;
  std::vector<int32_t> order_;
};

struct Sequence {
  /// `seed` is the one drawn for the request where params has none.
  Sequence(RequestId id, std::vector<int32_t> prompt, const SamplingParams& params, uint64_t seed)
      : id(id),
        params(params),
        seed(params.seed.value_or(seed)),
        prompt_size(int64_t(prompt.size())),
        tokens(std::move(prompt)) {
    if (has_penalty()) {
      for (const int32_t token : tokens) seen.add(token);
    }
  }

  RequestId id;
  SamplingParams params;
  uint64_t seed;
  int64_t prompt_size;
  std::vector<int32_t> tokens;  ///< prompt, then output
  int64_t computed = 0;         ///< leading tokens whose keys and values are in the cache
  int64_t cached_prompt = 0;    ///< prompt tokens that came from the prefix cache when it was first admitted
  bool admitted_before = false;
  int pending = 0;  ///< newest tokens that queued steps sample: written -1-row, see Scheduler::append_pending
  SeenTokens seen;  ///< kept only with a repetition penalty

  int64_t size() const { return int64_t(tokens.size()); }
  /// Leading tokens whose values are known.
  int64_t known() const { return size() - pending; }
  /// The last token it may have is being sampled.
  bool awaits_last() const { return pending > 0 && output_size() >= params.max_tokens; }
  int64_t remaining() const { return size() - computed; }
  int64_t output_size() const { return size() - prompt_size; }
  bool has_penalty() const { return params.repeat_penalty != 1; }
  /// All but the newest token are in the cache.
  bool decoding() const { return remaining() == 1 && output_size() > 0; }
  /// Every prompt token's logits are still wanted.
  bool scoring() const { return params.prompt_logprobs && output_size() == 0; }
  /// Most tokens that will ever be in the cache: the last sampled one never enters it.
  int64_t most_cached() const { return prompt_size + (params.max_tokens > 0 ? params.max_tokens - 1 : 0); }

  void append(int32_t token) {
    tokens.push_back(token);
    if (has_penalty()) seen.add(token);
  }
};

}  // namespace spinfer
