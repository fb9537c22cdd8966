// `spinfer bench latency`: fixed batches of random prompts, sparse next to dense.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "engine/apps/command.h"
#include "engine/apps/generation_run.h"
#include "engine/apps/options.h"
#include "engine/apps/output.h"
#include "engine/apps/progress.h"
#include "engine/apps/report.h"
#include "engine/apps/step_breakdown.h"
#include "kernels/check.h"
#include "models/config.h"

namespace spinfer {
namespace {

struct LatencyFlags {
  CommonFlags common;
  CapacityFlags capacity;
  ConfigFlags config;
  int input_len = 64;
  int output_len = 256;
  std::vector<int> batch_sizes = {8};
  int warmup = 1;
  bool breakdown = false;
  std::string baseline;
  std::string csv;
};

/// One batch size, sparse or dense.
struct Measured {
  RunReport report;
  std::optional<StepBreakdown> breakdown;
};

/// Ids drawn from the vocabulary without regard to meaning: latency does not depend on them.
std::vector<Prompt> random_prompts(const LatencyFlags& flags, int batch_size, int64_t vocab, int input_len,
                                   int output_len) {
  std::vector<Prompt> prompts(static_cast<size_t>(batch_size));
  uint32_t draw = 0;
  for (Prompt& prompt : prompts) {
    for (int i = 0; i < input_len; ++i) {
      prompt.ids.push_back(int32_t(sample_uniform(flags.common.seed.value_or(0), draw++) * float(vocab)));
    }
    prompt.params.max_tokens = output_len;
    prompt.params.temperature = 0;
    prompt.params.ignore_eos = true;
  }
  return prompts;
}

/// Short runs in which everything happens that the measured run does: the prefill, and decode steps at each
/// context length whose power of two a graph is recorded for.
void warm_up_batch(Engine& engine, const LatencyFlags& flags, int batch_size) {
  constexpr int kTokens = 4;
  const int64_t vocab = engine.config().vocab_size;
  const int longest = flags.input_len + flags.output_len;
  for (int input = flags.input_len;;) {
    run_prompts(engine, random_prompts(flags, batch_size, vocab, input, std::min(kTokens, longest - input)));
    int next = 256;
    while (next <= input + kTokens) next *= 2;
    if (next + 1 >= longest) return;
    input = next + 1;
  }
}

EngineOptions options_of(const LatencyFlags& flags, bool dense) {
  EngineOptions options = flags.common.engine_options();
  flags.capacity.apply(options);
  const int batch_size = *std::max_element(flags.batch_sizes.begin(), flags.batch_sizes.end());
  options.dense = dense;
  options.prefix_caching = false;
  options.max_num_seqs = batch_size;
  flags.config.apply(options);
  if (options.max_model_len == 0) options.max_model_len = flags.input_len + flags.output_len;
  // No step has more tokens than all prompts together.
  options.max_num_batched_tokens =
      int(std::min<int64_t>(options.max_num_batched_tokens, int64_t{batch_size} * flags.input_len));
  options.score_logits_bytes = 0;
  if (options.num_kv_blocks == 0 && options.kv_cache_bytes == 0) {
    // The whole batch at once. The last token never enters the cache; to be admitted a request needs a spare
    // block for each one that runs.
    const auto blocks = [&](int64_t tokens) {
      return (tokens + options.block_size - 1) / options.block_size;
    };
    const int64_t most = blocks(flags.input_len + flags.output_len - 1);
    options.num_kv_blocks =
        std::max(batch_size * std::max(most, blocks(flags.input_len) + 1), blocks(options.max_model_len));
  }
  return options;
}

std::vector<Measured> measure(const LatencyFlags& flags, bool dense) {
  EngineOptions options = options_of(flags, dense);
  ProgressBar bar(dense ? "loading dense" : "loading sparse", ProgressUnit::bytes);
  options.load_progress = bar.callback();
  const auto engine = Engine::create(options);
  const int64_t vocab = engine->config().vocab_size;
  std::vector<Measured> all;
  for (const int batch_size : flags.batch_sizes) {
    for (int i = 0; i < flags.warmup; ++i) warm_up_batch(*engine, flags, batch_size);
    const auto prompts = random_prompts(flags, batch_size, vocab, flags.input_len, flags.output_len);
    const GenerationRun run = run_prompts(*engine, prompts);
    all.push_back({make_report(*engine, run.times, flags.common.threads), {}});
    if (flags.breakdown) all.back().breakdown = measure_breakdown(*engine, prompts);
  }
  return all;
}

nlohmann::json column_json(const Measured& measured) {
  nlohmann::json column = latency_json(measured.report);
  if (measured.breakdown) column["breakdown_ms"] = breakdown_json(*measured.breakdown);
  return column;
}

nlohmann::json row_json(const LatencyFlags& flags, size_t i, const std::vector<Measured>& sparse,
                        const std::vector<Measured>& dense) {
  nlohmann::json row{{"sparse", column_json(sparse[i])},
                     {"batch_size", flags.batch_sizes[i]},
                     {"input_len", flags.input_len},
                     {"output_len", flags.output_len}};
  if (!dense.empty()) {
    row["dense"] = column_json(dense[i]);
    row["speedup"] = decode_speedup(sparse[i].report, dense[i].report);
  }
  return row;
}

void print_tables(const LatencyFlags& flags, const std::vector<Measured>& sparse,
                  const std::vector<Measured>& dense) {
  for (size_t i = 0; i < sparse.size(); ++i) {
    if (sparse.size() > 1) print_out(fmt::format("batch size {}\n", flags.batch_sizes[i]));
    std::optional<RunReport> other;
    if (!dense.empty()) other = dense[i].report;
    print_out(report_table(sparse[i].report, other));
    if (!flags.breakdown) continue;
    std::optional<StepBreakdown> other_breakdown;
    if (!dense.empty()) other_breakdown = dense[i].breakdown;
    print_out(breakdown_table(*sparse[i].breakdown, other_breakdown));
  }
}

std::string to_csv(const LatencyFlags& flags, const std::vector<Measured>& sparse,
                   const std::vector<Measured>& dense) {
  std::string text =
      "weights,batch_size,input_len,output_len,prefill_ms,ttft_ms,tpot_ms_median,tpot_ms_p90,tpot_ms_p99,"
      "tokens_per_s,peak_bytes,weights_bytes\n";
  const auto rows = [&](const char* name, const std::vector<Measured>& column) {
    for (size_t i = 0; i < column.size(); ++i) {
      const GenerationTimes& t = column[i].report.times;
      const MemoryReport& m = column[i].report.memory;
      text += fmt::format("{},{},{},{},{:.4f},{:.4f},{:.4f},{:.4f},{:.4f},{:.2f},{},{}\n", name,
                          flags.batch_sizes[i], flags.input_len, flags.output_len, t.prefill_ms, t.ttft_ms,
                          t.tpot_ms_median, t.tpot_ms_p90, t.tpot_ms_p99, t.tokens_per_s, m.peak_bytes,
                          m.weights_bytes);
    }
  };
  rows("sparse", sparse);
  rows("dense", dense);
  return text;
}

void check_lengths(const LatencyFlags& flags) {
  const ModelConfig config = load_config(flags.config.given() ? flags.config.config : flags.common.model);
  if (int64_t{flags.input_len} + flags.output_len <= config.max_positions) return;
  throw UsageError(
      fmt::format("--input-len {} and --output-len {}: together at most {}, the model's positions",
                  flags.input_len, flags.output_len, config.max_positions));
}

void run_latency(const LatencyFlags& flags) {
  flags.config.check_source(flags.common.model);
  check_lengths(flags);
  CsvFile csv(flags.csv);
  // One after the other: both at once may not fit.
  const std::vector<Measured> sparse = measure(flags, false);
  std::vector<Measured> dense;
  if (!flags.baseline.empty()) dense = measure(flags, true);
  if (csv.wanted()) csv.write(to_csv(flags, sparse, dense));
  if (!flags.common.json) return print_tables(flags, sparse, dense);
  if (sparse.size() == 1) return print_json(row_json(flags, 0, sparse, dense));
  nlohmann::json rows = nlohmann::json::array();
  for (size_t i = 0; i < sparse.size(); ++i) rows.push_back(row_json(flags, i, sparse, dense));
  print_json({{"rows", rows}});
}

}  // namespace

void add_bench_latency(CLI::App& bench) {
  auto flags = std::make_shared<LatencyFlags>();
  CLI::App* command = bench.add_subcommand("latency", "a fixed batch: prefill, TTFT, TPOT, tokens/s, memory");
  flags->common.add_to(*command, CommonFlags::Model::optional);
  flags->capacity.add_to(*command);
  const auto count = whole_number_in(1, 1 << 20);
  flags->config.add_to(*command, "config.json of a model to fill with random weights, instead of -m");
  command->add_option("--input-len", flags->input_len, "prompt tokens of each request")
      ->check(count)
      ->capture_default_str();
  command->add_option("--output-len", flags->output_len, "new tokens of each request")
      ->check(count)
      ->capture_default_str();
  add_list(*command, "--batch-size", flags->batch_sizes, "requests; several numbers: one run each", count)
      ->capture_default_str();
  command->add_option("--warmup", flags->warmup, "short runs before each measured one")
      ->check(whole_number_in(0, 100))
      ->capture_default_str();
  command->add_option("--baseline", flags->baseline, "dense: also run the same masked weights dense")
      ->check(CLI::IsMember({"dense"}));
  command->add_flag("--breakdown", flags->breakdown,
                    "also where a decode step's time goes: each kind of op by leaving it out");
  command->add_option("--csv", flags->csv, "also write a line per batch size to this file")
      ->check(not_empty());
  command->callback([flags] { run_latency(*flags); });
}

}  // namespace spinfer
