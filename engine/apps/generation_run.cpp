#include "engine/apps/generation_run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "engine/apps/interrupt.h"
#include "kernels/check.h"

namespace spinfer {

void warm_up(Engine& engine, const std::vector<Prompt>& prompts) {
  constexpr size_t kMost = 64;
  constexpr int kTokens = 3;
  std::vector<Prompt> others(prompts.begin(), prompts.begin() + long(std::min(prompts.size(), kMost)));
  for (Prompt& prompt : others) {
    std::reverse(prompt.ids.begin(), prompt.ids.end());
    prompt.params = SamplingParams{
        .max_tokens = std::min(prompt.params.max_tokens, kTokens), .temperature = 0, .ignore_eos = true};
  }
  run_prompts(engine, others);
}

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  std::sort(values.begin(), values.end());
  const double position = q * double(values.size() - 1);
  const size_t below = size_t(position);
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (values[above] - values[below]) * (position - double(below));
}

GenerationRun run_prompts(Engine& engine, const std::vector<Prompt>& prompts,
                          const std::function<void(size_t, const std::string&)>& on_text) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };

  GenerationRun run;
  run.outputs.resize(prompts.size());
  std::unordered_map<RequestId, size_t> index;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const Prompt& prompt = prompts[i];
    index[naming(prompt.where, [&] { return engine.add_request(prompt.ids, prompt.params); })] = i;
    run.times.prompt_tokens += int64_t(prompt.ids.size());
  }

  std::vector<bool> has_token(prompts.size());
  std::vector<double> first_token_ms;
  while (engine.has_work()) {
    stop_if_interrupted();
    const double before = seconds();
    auto updates = engine.step();
    const double now = seconds();
    const StepStats step = engine.last_step();
    if (step.decode_tokens > 0 && step.prefill_tokens == 0) run.times.step_ms.push_back((now - before) * 1e3);
    if (step.prefill_tokens > 0) run.times.prefill_ms += (now - before) * 1e3;
    for (auto& update : updates) {
      if (update.finish == FinishReason::error) throw Error(update.error);
      const size_t i = index.at(update.id);
      Generation& output = run.outputs[i];
      if (!has_token[i] && (!update.new_ids.empty() || update.finish != FinishReason::none)) {
        has_token[i] = true;
        first_token_ms.push_back(now * 1e3);
      }
      output.ids.insert(output.ids.end(), update.new_ids.begin(), update.new_ids.end());
      output.text += update.new_text;
      std::move(update.logprobs.begin(), update.logprobs.end(), std::back_inserter(output.logprobs));
      output.finish = update.finish;
      run.times.new_tokens += int64_t(update.new_ids.size());
      if (on_text && !update.new_text.empty()) on_text(i, update.new_text);
    }
  }

  GenerationTimes& times = run.times;
  times.seconds = seconds();
  for (double ms : first_token_ms) times.ttft_ms += ms / double(first_token_ms.size());
  times.tpot_ms_median = quantile(times.step_ms, 0.5);
  times.tpot_ms_p90 = quantile(times.step_ms, 0.9);
  times.tpot_ms_p99 = quantile(times.step_ms, 0.99);
  times.tokens_per_s = times.seconds > 0 ? double(times.new_tokens) / times.seconds : 0;
  return run;
}

}  // namespace spinfer
