// `spinfer perplexity`: how well a model predicts a text; with --compare, how far another model is from it.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "engine/apps/command.h"
#include "engine/apps/interrupt.h"
#include "engine/apps/options.h"
#include "engine/apps/output.h"
#include "engine/apps/progress.h"
#include "kernels/check.h"

namespace spinfer {
namespace {

struct PerplexityFlags {
  CommonFlags common;
  CapacityFlags capacity;
  std::string file;
  std::string tokens_file;
  int ctx = 2048;
  int stride = 0;
};

/// One window: BOS and up to `ctx` text tokens; log-probabilities count from `first_scored` on.
struct Window {
  std::vector<int32_t> ids;
  size_t first_scored = 1;
};

/// Windows start every `stride` tokens; where they overlap, only tokens no earlier window scored are scored.
std::vector<Window> make_windows(const std::vector<int32_t>& text, std::optional<int32_t> bos, int ctx,
                                 int stride) {
  std::vector<Window> windows;
  size_t scored = 0;
  for (size_t begin = 0; scored < text.size(); begin += size_t(stride)) {
    const size_t end = std::min(text.size(), begin + size_t(ctx));
    Window window;
    if (bos) window.ids.push_back(*bos);
    window.ids.insert(window.ids.end(), text.begin() + long(begin), text.begin() + long(end));
    window.first_scored = scored - begin + (bos ? 1 : 0);
    if (window.first_scored == 0) window.first_scored = 1;  // without BOS the first token has no context
    scored = end;
    if (window.ids.size() > window.first_scored) windows.push_back(std::move(window));
  }
  return windows;
}

struct Quality {
  double mean_nll = 0;
  double nll_error = 0;  ///< standard error of the mean
  int64_t tokens = 0;
};

std::vector<std::vector<float>> score_windows(Engine& engine, const std::vector<Window>& windows) {
  SamplingParams params;
  params.max_tokens = 0;
  params.prompt_logprobs = true;
  std::unordered_map<RequestId, size_t> index;
  for (size_t i = 0; i < windows.size(); ++i) index[engine.add_request(windows[i].ids, params)] = i;
  std::vector<std::vector<float>> logprobs(windows.size());
  ProgressBar bar("scoring", ProgressUnit::items);
  int64_t done = 0;
  while (engine.has_work()) {
    stop_if_interrupted();
    for (auto& update : engine.step()) {
      if (update.finish == FinishReason::error) throw Error(update.error);
      if (!update.prompt_logprobs.empty()) logprobs[index.at(update.id)] = std::move(update.prompt_logprobs);
      if (update.finish != FinishReason::none) bar.update(++done, int64_t(windows.size()));
    }
  }
  return logprobs;
}

Quality measure(const std::vector<Window>& windows, const std::vector<std::vector<float>>& logprobs) {
  Quality quality;
  double sum = 0, squares = 0;
  for (size_t w = 0; w < windows.size(); ++w) {
    for (size_t i = windows[w].first_scored; i < windows[w].ids.size(); ++i) {
      const double nll = -double(logprobs[w][i - 1]);
      sum += nll;
      squares += nll * nll;
      ++quality.tokens;
    }
  }
  const double n = double(quality.tokens);
  quality.mean_nll = sum / n;
  const double variance = n > 1 ? std::max(0.0, (squares - sum * sum / n) / (n - 1)) : 0;
  quality.nll_error = std::sqrt(variance / n);
  return quality;
}

std::vector<int32_t> read_tokens(const PerplexityFlags& flags, const Engine& engine) {
  if (flags.file.empty() == flags.tokens_file.empty())
    throw UsageError("perplexity: give one of -f and --tokens-file");
  if (!flags.tokens_file.empty()) return parse_ids(read_text(flags.tokens_file), flags.tokens_file);
  check(engine.tokenizer(), "{}: no tokenizer files; give ids with --tokens-file", flags.common.model);
  return engine.tokenizer()->encode(read_text(flags.file), false);
}

void run_perplexity(const PerplexityFlags& flags) {
  EngineOptions options = flags.common.engine_options();
  flags.capacity.apply(options);
  ProgressBar bar("loading", ProgressUnit::bytes);
  options.load_progress = bar.callback();
  const auto engine = Engine::create(options);
  const auto text = read_tokens(flags, *engine);
  const auto bos = engine->config().bos_id >= 0 ? std::optional(engine->config().bos_id) : std::nullopt;
  const int64_t longest = engine->max_model_len() - (bos ? 1 : 0);
  if (flags.ctx > longest) {
    throw UsageError(
        fmt::format("--ctx {}: this model takes windows of at most {} text tokens", flags.ctx, longest));
  }
  const auto windows = make_windows(text, bos, flags.ctx, flags.stride > 0 ? flags.stride : flags.ctx);
  check(!windows.empty(), "{}: too short, no token has a context",
        flags.file.empty() ? flags.tokens_file : flags.file);
  const Quality quality = measure(windows, score_windows(*engine, windows));
  const double ppl = std::exp(quality.mean_nll);
  const double ppl_error = ppl * quality.nll_error;
  if (flags.common.json) {
    return print_json({{"ppl", ppl},
                       {"ppl_error", ppl_error},
                       {"mean_nll", quality.mean_nll},
                       {"tokens", quality.tokens},
                       {"windows", windows.size()},
                       {"ranks", engine->ranks()}});
  }
  print_out(fmt::format("perplexity {:.4f} +- {:.4f} ({} tokens in {} windows, mean nll {:.5f})\n", ppl,
                        ppl_error, quality.tokens, windows.size(), quality.mean_nll));
}

}  // namespace

void add_perplexity(CLI::App& app) {
  auto flags = std::make_shared<PerplexityFlags>();
  CLI::App* command =
      app.add_subcommand("perplexity", "perplexity on a text: windows of BOS and --ctx text tokens");
  flags->common.add_to(*command, CommonFlags::Model::required);
  flags->capacity.add_to(*command);
  command->add_option("-f,--file", flags->file, "text; - = stdin");
  command->add_option("--tokens-file", flags->tokens_file, "token ids instead of text");
  command->add_option("--ctx", flags->ctx, "text tokens of a window")
      ->check(number_in(1, 1 << 24, "1…16777216"))
      ->capture_default_str();
  command->add_option("--stride", flags->stride, "tokens from one window to the next; 0 = --ctx")
      ->check(number_in(0, 1 << 24, "0…16777216"));
  command->callback([flags] {
    if (flags->stride > flags->ctx)
      throw UsageError(fmt::format("--stride {}: must not exceed --ctx {}", flags->stride, flags->ctx));
    run_perplexity(*flags);
  });
}

}  // namespace spinfer
