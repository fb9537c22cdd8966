// `spinfer score`: log-probabilities of given token sequences.
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "engine/apps/command.h"
#include "engine/apps/options.h"
#include "engine/apps/output.h"
#include "engine/apps/progress.h"
#include "engine/apps/sequence_scores.h"
#include "kernels/check.h"
#include "models/config.h"

namespace spinfer {
namespace {

struct ScoreFlags {
  CommonFlags common;
  CapacityFlags capacity;
  std::string tokens;
  std::string tokens_file;
  int top = 8;
};

std::vector<std::vector<int32_t>> read_sequences(const ScoreFlags& flags) {
  std::vector<std::vector<int32_t>> sequences;
  if (flags.tokens.empty() == flags.tokens_file.empty())
    throw UsageError("score: give one of --tokens and --tokens-file");
  if (!flags.tokens.empty()) {
    sequences.push_back(parse_ids(flags.tokens, "--tokens", IdSource::flag));
  } else {
    const std::string text = read_text(flags.tokens_file);
    int64_t line = 0;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find('\n', begin), text.size());
      auto ids = parse_ids(std::string_view(text).substr(begin, end - begin),
                           fmt::format("{} line {}", flags.tokens_file, ++line), IdSource::file);
      if (!ids.empty()) sequences.push_back(std::move(ids));
      begin = end + 1;
    }
  }
  if (!flags.tokens.empty() && sequences[0].empty()) throw UsageError("--tokens: no token ids given");
  check(!sequences.empty(), "{}: holds no token ids", flags.tokens_file);
  return sequences;
}

/// Before the weights are loaded: ids given on the command line are usage, those of a file are not.
void check_sequences(const ScoreFlags& flags, const std::vector<std::vector<int32_t>>& sequences) {
  const ModelConfig config = load_config(flags.common.model);
  const bool from_flag = flags.tokens_file.empty();
  const auto need = [&](bool ok, int64_t value, const char* what, int64_t most) {
    if (ok) return;
    const std::string message = fmt::format("{}: {} {}; at most {} with this model",
                                            from_flag ? "--tokens" : flags.tokens_file, what, value, most);
    if (from_flag) throw UsageError(message);
    throw Error(message);
  };
  for (const auto& ids : sequences) {
    for (const int32_t id : ids) need(id < config.vocab_size, id, "token id", config.vocab_size - 1);
    const auto length = int64_t(ids.size());
    need(length <= config.max_positions, length, "sequence length", config.max_positions);
  }
}

void print_text(const std::vector<SequenceScore>& results) {
  for (const SequenceScore& result : results) {
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
  check_sequences(flags, sequences);
  EngineOptions options = flags.common.engine_options();
  flags.capacity.apply(options);
  ProgressBar bar("loading", ProgressUnit::bytes);
  options.load_progress = bar.callback();
  const auto engine = Engine::create(options);
  ProgressBar scoring("scoring", ProgressUnit::items);
  const auto results = score_sequences(*engine, {sequences.begin(), sequences.end()}, flags.top, scoring);
  if (!flags.common.json) return print_text(results);
  nlohmann::json document{{"ranks", engine->ranks()}, {"sequences", nlohmann::json::array()}};
  for (const SequenceScore& result : results) {
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
  command->add_option("--tokens", flags->tokens, "one sequence of ids: 1,2,3 (no BOS is added)")
      ->check(not_empty());
  command->add_option("--tokens-file", flags->tokens_file, "one sequence a line; - = stdin")
      ->check(not_empty());
  command->add_option("--top", flags->top, "how many most probable next tokens to list")
      ->check(whole_number_in(0, 100))
      ->capture_default_str();
  command->callback([flags] { run_score(*flags); });
}

}  // namespace spinfer
