// `spinfer bench latency`: a fixed batch of random prompts, sparse next to dense.
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "engine/apps/command.h"
#include "engine/apps/generation_run.h"
#include "engine/apps/options.h"
#include "engine/apps/output.h"
#include "engine/apps/progress.h"
#include "engine/apps/report.h"
#include "kernels/check.h"
#include "models/config.h"

namespace spinfer {
namespace {

struct LatencyFlags {
  CommonFlags common;
  CapacityFlags capacity;
  std::string config;
  double sparsity = 0.6;
  int input_len = 64;
  int output_len = 256;
  int batch_size = 8;
  int warmup = 1;
  std::string baseline;
};

/// Ids drawn from the vocabulary without regard to meaning: latency does not depend on them.
std::vector<Prompt> random_prompts(const LatencyFlags& flags, int64_t vocab, int output_len) {
  std::vector<Prompt> prompts(size_t(flags.batch_size));
  uint32_t draw = 0;
  for (Prompt& prompt : prompts) {
    for (int i = 0; i < flags.input_len; ++i) {
      prompt.ids.push_back(int32_t(sample_uniform(flags.common.seed.value_or(0), draw++) * float(vocab)));
    }
    prompt.params.max_tokens = output_len;
    prompt.params.temperature = 0;
    prompt.params.ignore_eos = true;
  }
  return prompts;
}

RunReport measure(const LatencyFlags& flags, bool dense) {
  EngineOptions options = flags.common.engine_options();
  flags.capacity.apply(options);
  options.dense = dense;
  options.prefix_caching = false;
  options.max_num_seqs = std::max(1, flags.batch_size);
  if (!flags.config.empty()) {
    options.model = flags.config;
    options.random_weights = flags.sparsity;
  }
  if (options.max_model_len == 0) options.max_model_len = flags.input_len + flags.output_len;
  if (options.num_kv_blocks == 0 && options.kv_cache_bytes == 0) {
    // The whole batch at once; the scheduler keeps a spare block for each running request.
    const int64_t blocks = (options.max_model_len + options.block_size - 1) / options.block_size + 1;
    options.num_kv_blocks = blocks * flags.batch_size;
  }
  ProgressBar bar(dense ? "loading dense" : "loading sparse", ProgressUnit::bytes);
  options.load_progress = bar.callback();
  const auto engine = Engine::create(options);
  const int64_t vocab = engine->config().vocab_size;
  for (int i = 0; i < flags.warmup; ++i)
    run_prompts(*engine, random_prompts(flags, vocab, std::min(4, flags.output_len)));
  const GenerationRun run = run_prompts(*engine, random_prompts(flags, vocab, flags.output_len));
  return make_report(*engine, run.times, flags.common.threads);
}

void check_lengths(const LatencyFlags& flags) {
  const ModelConfig config = load_config(flags.config.empty() ? flags.common.model : flags.config);
  if (int64_t{flags.input_len} + flags.output_len <= config.max_positions) return;
  throw UsageError(
      fmt::format("--input-len {} and --output-len {}: together at most {}, the model's positions",
                  flags.input_len, flags.output_len, config.max_positions));
}

void run_latency(const LatencyFlags& flags) {
  check_one_source("bench latency", !flags.common.model.empty(), !flags.config.empty());
  check_lengths(flags);
  const RunReport sparse = measure(flags, false);
  std::optional<RunReport> dense;
  if (!flags.baseline.empty()) dense = measure(flags, true);
  if (!flags.common.json) return print_out(report_table(sparse, dense));
  nlohmann::json document{{"sparse", latency_json(sparse)},
                          {"batch_size", flags.batch_size},
                          {"input_len", flags.input_len},
                          {"output_len", flags.output_len}};
  if (dense) {
    document["dense"] = latency_json(*dense);
    document["speedup"] = decode_speedup(sparse, *dense);
  }
  print_json(document);
}

}  // namespace

void add_bench_latency(CLI::App& bench) {
  auto flags = std::make_shared<LatencyFlags>();
  CLI::App* command = bench.add_subcommand("latency", "a fixed batch: TTFT, TPOT, tokens/s, memory");
  flags->common.add_to(*command, CommonFlags::Model::optional);
  flags->capacity.add_to(*command);
  const auto count = whole_number_in(1, 1 << 20);
  command->add_option("--config", flags->config,
                      "config.json of a model to fill with random weights, instead of -m");
  command->add_option("--sparsity", flags->sparsity, "zeros in random weights")
      ->check(number_in(0, 1, "0..1"))
      ->capture_default_str();
  command->add_option("--input-len", flags->input_len, "prompt tokens of each request")
      ->check(count)
      ->capture_default_str();
  command->add_option("--output-len", flags->output_len, "new tokens of each request")
      ->check(count)
      ->capture_default_str();
  command->add_option("--batch-size", flags->batch_size, "requests")->check(count)->capture_default_str();
  command->add_option("--warmup", flags->warmup, "short runs before the measured one")
      ->check(whole_number_in(0, 100))
      ->capture_default_str();
  command->add_option("--baseline", flags->baseline, "dense: also run the same masked weights dense")
      ->check(CLI::IsMember({"dense"}));
  command->callback([flags] { run_latency(*flags); });
}

}  // namespace spinfer
