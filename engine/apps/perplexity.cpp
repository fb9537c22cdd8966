// `spinfer perplexity`: how well a model predicts a text; with --compare, how far another model is from it.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>

#include "engine/apps/command.h"
#include "engine/apps/distribution_distance.h"
#include "engine/apps/options.h"
#include "engine/apps/output.h"
#include "engine/apps/progress.h"
#include "engine/apps/report.h"
#include "engine/apps/sequence_scores.h"
#include "kernels/check.h"

namespace spinfer {
namespace {

struct PerplexityFlags {
  CommonFlags common;
  CapacityFlags capacity;
  std::string file;
  std::string tokens_file;
  int ctx = 0;
  int stride = 0;
  std::string convention = "bos";
  std::string compare;
};

constexpr int kDefaultCtx = 2048;

/// One window, by our convention BOS and up to `ctx` text tokens; log-probabilities count from `first_scored`
/// on.
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
    window.ids.reserve(end - begin + 1);
    if (bos) window.ids.push_back(*bos);
    window.ids.insert(window.ids.end(), text.begin() + long(begin), text.begin() + long(end));
    window.first_scored = scored - begin + (bos ? 1 : 0);
    if (window.first_scored == 0) window.first_scored = 1;  // without BOS the first token has no context
    scored = end;
    if (window.ids.size() > window.first_scored) windows.push_back(std::move(window));
  }
  return windows;
}

/// As the evaluations of the Wanda and SparseGPT papers do: the text, begun with BOS once, cut into windows
/// of `ctx` tokens, of which all but the first are scored; what is left over is not.
std::vector<Window> make_paper_windows(std::vector<int32_t> text, std::optional<int32_t> bos, int ctx) {
  if (bos) text.insert(text.begin(), *bos);
  std::vector<Window> windows;
  for (auto begin = text.begin(); ctx > 1 && text.end() - begin >= ctx; begin += ctx)
    windows.push_back({{begin, begin + ctx}, 1});
  return windows;
}

struct Quality {
  double mean_nll = 0;
  double nll_error = 0;  ///< standard error of the mean; NaN of one token
  int64_t tokens = 0;
  double ppl() const { return std::exp(mean_nll); }
  double ppl_error() const { return ppl() * nll_error; }
};

/// All windows batched.
std::vector<SequenceScore> score_windows(Engine& engine, const std::vector<Window>& windows,
                                         ProgressBar& bar) {
  std::vector<std::span<const int32_t>> ids;
  for (const Window& window : windows) ids.emplace_back(window.ids);
  return score_sequences(engine, ids, -1, bar);
}

Quality measure(const std::vector<Window>& windows, const std::vector<SequenceScore>& scores) {
  Quality quality;
  double sum = 0, squares = 0;
  for (size_t w = 0; w < windows.size(); ++w) {
    for (size_t i = windows[w].first_scored; i < windows[w].ids.size(); ++i) {
      const double nll = -double(scores[w].token_logprobs[i - 1]);
      sum += nll;
      squares += nll * nll;
      ++quality.tokens;
    }
  }
  const double n = double(quality.tokens);
  quality.mean_nll = sum / n;
  const double variance =
      n > 1 ? std::max(0.0, (squares - sum * sum / n) / (n - 1)) : std::numeric_limits<double>::quiet_NaN();
  quality.nll_error = std::sqrt(variance / n);
  return quality;
}

std::vector<int32_t> read_tokens(const PerplexityFlags& flags, const Engine& engine) {
  if (!flags.tokens_file.empty())
    return parse_ids(read_text(flags.tokens_file), flags.tokens_file, IdSource::file);
  check(engine.tokenizer(), "{}: no tokenizer files; give ids with --tokens-file", flags.common.model);
  return engine.tokenizer()->encode(read_text(flags.file), false);
}

std::unique_ptr<Engine> load(const PerplexityFlags& flags, const std::string& model) {
  EngineOptions options = flags.common.engine_options();
  flags.capacity.apply(options);
  options.model = model;
  // Two models share the device: windows run one by one, so that each takes no more cache than it must.
  if (!flags.compare.empty()) options.max_num_seqs = 1;
  ProgressBar bar("loading", ProgressUnit::bytes);
  options.load_progress = bar.callback();
  return Engine::create(options);
}

std::vector<Window> windows_of(const PerplexityFlags& flags, const Engine& engine) {
  const auto bos = engine.config().bos_id >= 0 ? std::optional(engine.config().bos_id) : std::nullopt;
  const bool papers = flags.convention == "wanda";
  const int64_t longest = engine.max_model_len() - (bos && !papers ? 1 : 0);
  check(longest >= 1 && engine.max_model_len() >= 2,
        "perplexity: the model takes sequences of {} tokens, in which no token has a context",
        engine.max_model_len());
  if (flags.ctx > longest) {
    throw UsageError(
        fmt::format("--ctx {}: this model takes windows of at most {} text tokens", flags.ctx, longest));
  }
  if (papers && flags.stride > 0)
    throw UsageError("--stride: the windows of --convention wanda do not overlap");
  const int ctx = flags.ctx > 0 ? flags.ctx : int(std::min<int64_t>(kDefaultCtx, longest));
  if (flags.stride > ctx)
    throw UsageError(fmt::format("--stride {}: must not exceed the window's {} tokens", flags.stride, ctx));
  auto text = read_tokens(flags, engine);
  auto windows = papers ? make_paper_windows(std::move(text), bos, ctx)
                        : make_windows(text, bos, ctx, flags.stride > 0 ? flags.stride : ctx);
  check(!windows.empty(), "{}: too short, {}", flags.file.empty() ? flags.tokens_file : flags.file,
        papers ? "it fills no window" : "no token has a context");
  return windows;
}

struct Comparison {
  Quality model, reference;
  DistributionDistance distance;
};

/// Log-probabilities of a window's tokens; `logits` becomes [tokens][vocab], what predicted those from
/// `first_scored` on.
SequenceScore window_logits(Engine& engine, const Window& window, std::vector<float>& logits) {
  const auto vocab = size_t(engine.config().vocab_size);
  logits.resize((window.ids.size() - window.first_scored) * vocab);
  engine.observe_prompt_logits([&](RequestId, int64_t position, std::span<const float> row) {
    if (size_t(position) < window.first_scored) return;
    std::copy(row.begin(), row.end(),
              logits.begin() + long((size_t(position) - window.first_scored) * vocab));
  });
  ProgressBar none("", ProgressUnit::items);
  auto scores = score_windows(engine, {window}, none);
  engine.observe_prompt_logits({});
  return std::move(scores[0]);
}

Comparison compare(Engine& model, Engine& reference, const std::vector<Window>& windows, int threads) {
  ThreadPool pool(threads);
  Comparison result;
  std::vector<float> p, q;
  std::vector<SequenceScore> model_scores, reference_scores;
  ProgressBar bar("comparing", ProgressUnit::items);
  for (const Window& window : windows) {
    model_scores.push_back(window_logits(model, window, q));
    reference_scores.push_back(window_logits(reference, window, p));
    result.distance.add(p, q, std::span(window.ids).subspan(window.first_scored), model.config().vocab_size,
                        pool);
    bar.update(int64_t(model_scores.size()), int64_t(windows.size()));
  }
  result.model = measure(windows, model_scores);
  result.reference = measure(windows, reference_scores);
  return result;
}

nlohmann::json quality_json(const Quality& quality, size_t windows, int ranks) {
  return {{"ppl", quality.ppl()},         {"ppl_error", quality.ppl_error()},
          {"mean_nll", quality.mean_nll}, {"tokens", quality.tokens},
          {"windows", windows},           {"ranks", ranks}};
}

std::string quality_text(const Quality& quality, size_t windows) {
  return fmt::format("perplexity {:.4f} +- {} ({} tokens in {} windows, mean nll {:.5f})\n", quality.ppl(),
                     number_or_na(quality.ppl_error(), 4), quality.tokens, windows, quality.mean_nll);
}

void run_comparison(const PerplexityFlags& flags, Engine& engine, const std::vector<Window>& windows) {
  const auto reference = load(flags, flags.compare);
  check(reference->config().vocab_size == engine.config().vocab_size,
        "{}: a vocabulary of {} tokens cannot be compared with one of {}", flags.compare,
        reference->config().vocab_size, engine.config().vocab_size);
  const Comparison c = compare(engine, *reference, windows, flags.common.threads);
  const double delta_ppl = c.model.ppl() - c.reference.ppl();
  if (flags.common.json) {
    auto document = quality_json(c.model, windows.size(), engine.ranks());
    document.update({{"reference", flags.compare},
                     {"reference_ppl", c.reference.ppl()},
                     {"delta_ppl", delta_ppl},
                     {"kl_divergence", c.distance.kl_divergence()},
                     {"kl_divergence_error", c.distance.kl_error()},
                     {"top1_agreement", c.distance.top1_agreement()},
                     {"rms_delta_p", c.distance.rms_delta_p()}});
    return print_json(document);
  }
  print_out(quality_text(c.model, windows.size()));
  print_out(fmt::format("reference  {:.4f} +- {} ({})\n", c.reference.ppl(),
                        number_or_na(c.reference.ppl_error(), 4), flags.compare));
  print_out(fmt::format("difference of perplexity {:+.4f} ({:+.2f} %)\n", delta_ppl,
                        100 * delta_ppl / c.reference.ppl()));
  print_out(fmt::format("KL divergence from the reference {:.6f} +- {} nats\n", c.distance.kl_divergence(),
                        number_or_na(c.distance.kl_error(), 6)));
  print_out(fmt::format("same most probable token {:.2f} %\n", 100 * c.distance.top1_agreement()));
  print_out(
      fmt::format("RMS change of the right token's probability {:.3f} %\n", 100 * c.distance.rms_delta_p()));
}

void run_perplexity(const PerplexityFlags& flags) {
  if (flags.file.empty() == flags.tokens_file.empty())
    throw UsageError("perplexity: give one of -f and --tokens-file");
  const auto engine = load(flags, flags.common.model);
  const auto windows = windows_of(flags, *engine);
  if (!flags.compare.empty()) return run_comparison(flags, *engine, windows);
  ProgressBar bar("scoring", ProgressUnit::items);
  const Quality quality = measure(windows, score_windows(*engine, windows, bar));
  if (flags.common.json) return print_json(quality_json(quality, windows.size(), engine->ranks()));
  print_out(quality_text(quality, windows.size()));
}

}  // namespace

void add_perplexity(CLI::App& app) {
  auto flags = std::make_shared<PerplexityFlags>();
  CLI::App* command =
      app.add_subcommand("perplexity", "perplexity on a text: windows of BOS and --ctx text tokens");
  flags->common.add_to(*command, CommonFlags::Model::required);
  flags->capacity.add_to(*command);
  command->add_option("-f,--file", flags->file, "text; - = stdin")->check(not_empty());
  command->add_option("--tokens-file", flags->tokens_file, "token ids instead of text")->check(not_empty());
  command->add_option("--ctx", flags->ctx, "text tokens of a window")
      ->check(whole_number_in(1, 1 << 24))
      ->default_str("2048, or what the model takes if less");
  command->add_option("--stride", flags->stride, "tokens from one window to the next; 0 = --ctx")
      ->check(whole_number_in(0, 1 << 24));
  command
      ->add_option("--convention", flags->convention,
                   "bos: each window begins with BOS; wanda: as the Wanda and SparseGPT papers measure, "
                   "whole windows of --ctx tokens, BOS before the first only")
      ->check(CLI::IsMember({"bos", "wanda"}))
      ->capture_default_str();
  command
      ->add_option("--compare", flags->compare,
                   "reference model: how far -m is from it (KL divergence, same top token, perplexity)")
      ->check(not_empty());
  command->callback([flags] { run_perplexity(*flags); });
}

}  // namespace spinfer
