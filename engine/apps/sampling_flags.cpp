#include "engine/apps/sampling_flags.h"

#include <nlohmann/json.hpp>

#include "engine/apps/options.h"
#include "kernels/check.h"

namespace spinfer {

void SamplingFlags::add_to(CLI::App& command) {
  command.add_option("-n,--max-tokens", max_tokens, "tokens to generate at most")
      ->check(whole_number_in(1, 1 << 24))
      ->capture_default_str();
  command.add_option("--temp,--temperature", temperature, "0 = greedy")
      ->check(number_in(0, 100, "0..100"))
      ->capture_default_str();
  command.add_option("--top-k", top_k, "0 = off")->check(whole_number_in(0, 1 << 24))->capture_default_str();
  command.add_option("--top-p", top_p, "1 = off")
      ->check(number_in(0, 1, "(0, 1]", true))
      ->capture_default_str();
  command.add_option("--min-p", min_p, "0 = off")->check(number_in(0, 1, "[0, 1]"))->capture_default_str();
  command.add_option("--repeat-penalty", repeat_penalty, "1 = off")
      ->check(number_in(kLowestRepeatPenalty, 1000, fmt::format("[{}, 1000]", kLowestRepeatPenalty)))
      ->capture_default_str();
  command.add_option("--stop", stop, "end before this text; may be given several times")
      ->allow_extra_args(false)
      ->type_name("TEXT");
  command.add_flag("--ignore-eos", ignore_eos, "go on past the end-of-text token");
  command
      .add_option("--logprobs", logprobs,
                  "with --json: log-probability of each token and of this many alternatives")
      ->check(whole_number_in(0, 100));
}

SamplingParams SamplingFlags::params(std::optional<uint64_t> seed) const {
  if (stop.size() > size_t{kMaxStopStrings})
    throw UsageError(
        fmt::format("--stop: given {} times, at most {} are possible", stop.size(), kMaxStopStrings));
  for (const std::string& text : stop) {
    if (text.empty() || text.size() > size_t{kMaxStopBytes})
      throw UsageError(fmt::format("--stop: {} bytes long, must be 1 to {}", text.size(), kMaxStopBytes));
    if ((uint8_t(text[0]) & 0xc0) == 0x80)
      throw UsageError("--stop: must not begin inside a UTF-8 character");
  }
  SamplingParams params;
  params.max_tokens = max_tokens;
  params.temperature = float(temperature);
  params.top_k = top_k;
  params.top_p = float(top_p);
  params.min_p = float(min_p);
  params.repeat_penalty = float(repeat_penalty);
  params.seed = seed;
  params.stop = stop;
  params.ignore_eos = ignore_eos;
  params.logprobs = logprobs;
  return params;
}

void SamplingFlags::check_logprobs(bool json) const {
  if (logprobs >= 0 && !json)
    throw UsageError("--logprobs: give --json too; without it the output is the text alone");
}

nlohmann::json logprobs_json(const std::vector<TokenLogprob>& logprobs) {
  nlohmann::json list = nlohmann::json::array();
  for (const TokenLogprob& token : logprobs) {
    nlohmann::json top = nlohmann::json::array();
    for (const TopLogprob& entry : token.top) top.push_back({{"id", entry.id}, {"logprob", entry.logprob}});
    list.push_back({{"id", token.id}, {"logprob", token.logprob}, {"top", top}});
  }
  return list;
}

}  // namespace spinfer
