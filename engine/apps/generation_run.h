// Runs a set of prompts through an engine to the end and measures it. Used by `generate` and the benchmarks.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "kernels/check.h"

namespace spinfer {

struct Prompt {
  std::vector<int32_t> ids;
  SamplingParams params;
  std::string where = {};  ///< "FILE line 3", or empty: what errors about the prompt begin with
};

/// What `work` returns; its errors begin with `where`, unless that is empty.
template <class Work>
auto naming(const std::string& where, const Work& work) {
  try {
    return work();
  } catch (const Error& error) {
    if (where.empty()) throw;
    fail("{}: {}", where, error.what());
  }
}

struct Generation {
  std::vector<int32_t> ids;  ///< new tokens, end-of-text not among them
  std::string text;
  std::vector<TokenLogprob> logprobs;  ///< one per id if asked for
  FinishReason finish = FinishReason::none;
};

/// Wall times of a run, all requests arriving together; loading and tokenizing are not in them.
struct GenerationTimes {
  double ttft_ms = 0;  ///< time to first token: from the start until the request's first token, queueing
                       ///< and prefill included; mean over requests
  double tpot_ms_median = 0;  ///< time per output token after the first: percentiles over the decode steps,
                              ///< NaN if there was none
  double tpot_ms_p90 = 0;
  double tpot_ms_p99 = 0;
  double prefill_ms = 0;    ///< steps that computed prompt tokens, together
  double tokens_per_s = 0;  ///< new tokens of all requests over the whole time
  double seconds = 0;
  int64_t prompt_tokens = 0;
  int64_t new_tokens = 0;
  std::vector<double> step_ms;  ///< each decode-only step
};

struct GenerationRun {
  std::vector<Generation> outputs;  ///< one per prompt, in order
  GenerationTimes times;
};

/// `on_text(prompt index, text)` streams; may be empty. Throws `Error` with the cause if a request fails,
/// `Interrupted` after SIGINT.
GenerationRun run_prompts(Engine& engine, const std::vector<Prompt>& prompts,
                          const std::function<void(size_t prompt, const std::string& text)>& on_text = {});

/// A short run of other tokens in the same numbers, so that the run after it finds memory mapped, threads
/// awake and no prefix of its prompts in the cache. To be called before any run that is measured.
void warm_up(Engine& engine, const std::vector<Prompt>& prompts);

/// The q-quantile (0…1) by linear interpolation; NaN of nothing.
double quantile(std::vector<double> values, double q);

}  // namespace spinfer
