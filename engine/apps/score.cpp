// `spinfer score`: log-probabilities of given token sequences.
#include <fmt/format.h>

#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "engine/apps/command.h"
#include "engine/apps/interrupt.h"
#include "engine/apps/options.h"
#include "engine/apps/output.h"
#include "engine/apps/progress.h"
#include "kernels/check.h"

namespace spinfer {
namespace {

struct ScoreFlags {
  CommonFlags common;
  CapacityFlags capacity;
  std::string tokens;
  std::string tokens_file;
  int top = 8;
};

struct Scored {
  std::vector<float> token_logprobs;
  std::vector<TopLogprob> last_top;
};

std::vector<std::vector<int32_t>> read_sequences(const ScoreFlags& flags) {
  std::vector<std::vector<int32_t>> sequences;
  if (flags.tokens.empty() == flags.tokens_file.empty())
    throw UsageError("score: give one of --tokens and --tokens-file");
  if (!flags.tokens.empty()) {
    sequences.push_back(parse_ids(flags.tokens, "--tokens"));
  } else {
    const std::string text = read_text(flags.tokens_file);
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find('\n', begin), text.size());
      auto ids = parse_ids(std::string_view(text).substr(begin, end - begin), flags.tokens_file);
      if (!ids.empty()) sequences.push_back(std::move(ids));
      begin = end + 1;
    }
  }
  if (sequences.empty() || sequences[0].empty()) throw UsageError("score: no token ids given");
  return sequences;
}

std::vector<Scored> score(Engine& engine, const std::vector<std::vector<int32_t>>& sequences, int top) {
  SamplingParams params;
  params.max_tokens = 0;
  params.prompt_logprobs = true;
  params.logprobs = top;
  std::map<RequestId, size_t> index;
  for (size_t i = 0; i < sequences.size(); ++i) index[engine.add_request(sequences[i], params)] = i;
  std::vector<Scored> results(sequences.size());
  ProgressBar bar("scoring", ProgressUnit::items);
  int64_t done = 0;
  while (engine.has_work()) {
    stop_if_interrupted();
    for (auto& update : engine.step()) {
      if (update.finish == FinishReason::error) throw Error(update.error);
      Scored& result = results[index.at(update.id)];
      if (!update.prompt_logprobs.empty()) result.token_logprobs = std::move(update.prompt_logprobs);
      if (!update.last_top.empty()) result.last_top = std::move(update.last_top);
      if (update.finish != FinishReason::none) bar.update(++done, int64_t(sequences.size()));
    }
  }
  return results;
}

void print_text(const std::vector<Scored>& results) {
  for (const Scored& result : results) {
    double sum = 0;
    std::string line;
    for (float logprob : result.token_logprobs) {
      line += fmt::format("{:.6f} ", logprob);
      sum += logprob;
    }
    print_out(fmt::format("{}\nsum {:.6f}; next:", line, sum));
    for (const TopLogprob& top : result.last_top) print_out(fmt::format(" {}:{:.4f}", top.id, top.logprob));
    print_out("\n");
  }
}

void run_score(const ScoreFlags& flags) {
  const auto sequences = read_sequences(flags);
  EngineOptions options = flags.common.engine_options();
  flags.capacity.apply(options);
  ProgressBar bar("loading", ProgressUnit::bytes);
  options.load_progress = bar.callback();
  const auto engine = Engine::create(options);
  const auto results = score(*engine, sequences, flags.top);
  if (!flags.common.json) return print_text(results);
  nlohmann::json document{{"ranks", engine->ranks()}, {"sequences", nlohmann::json::array()}};
  for (const Scored& result : results) {
    nlohmann::json last = nlohmann::json::array();
    for (const TopLogprob& top : result.last_top) last.push_back({{"id", top.id}, {"logprob", top.logprob}});
    document["sequences"].push_back({{"token_logprobs", result.token_logprobs}, {"last_top", last}});
  }
  print_json(document);
}

}  // namespace

void add_score(CLI::App& app) {
  auto flags = std::make_shared<ScoreFlags>();
  CLI::App* command = app.add_subcommand("score", "log-probabilities of given tokens");
  flags->common.add_to(*command, CommonFlags::Model::required);
  flags->capacity.add_to(*command);
  command->add_option("--tokens", flags->tokens, "one sequence of ids: 1,2,3 (no BOS is added)");
  command->add_option("--tokens-file", flags->tokens_file, "one sequence a line; - = stdin");
  command->add_option("--top", flags->top, "how many most probable next tokens to list")
      ->check(whole_number_in(0, 100))
      ->capture_default_str();
  command->callback([flags] { run_score(*flags); });
}

}  // namespace spinfer
