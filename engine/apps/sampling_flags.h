// The sampling flags of `generate` and `chat`.
#pragma once

#include <CLI/CLI.hpp>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/request.h"

namespace spinfer {

struct SamplingFlags {
  int max_tokens = 128;
  double temperature = 0.8;
  int top_k = 40;
  double top_p = 0.95;
  double min_p = 0;
  double repeat_penalty = 1;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  int logprobs = -1;

  void add_to(CLI::App& command);
  SamplingParams params(std::optional<uint64_t> seed) const;
  /// Throws `UsageError` for --logprobs without --json.
  void check_logprobs(bool json) const;
};

/// [{"id", "logprob", "top": [{"id", "logprob"}, …]}, …], as --logprobs with --json has it.
nlohmann::json logprobs_json(const std::vector<TokenLogprob>& logprobs);

}  // namespace spinfer
