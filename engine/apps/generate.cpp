// `spinfer generate`: text from one prompt (streamed) or from many (batched), with an optional dense
// baseline.
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "engine/apps/command.h"
#include "engine/apps/generation_run.h"
#include "engine/apps/options.h"
#include "engine/apps/output.h"
#include "engine/apps/progress.h"
#include "engine/apps/report.h"
#include "engine/apps/sampling_flags.h"
#include "kernels/check.h"
#include "models/json_text.h"

namespace spinfer {
namespace {

struct GenerateFlags {
  CommonFlags common;
  CapacityFlags capacity;
  SamplingFlags sampling;
  std::optional<std::string> prompt;
  std::string prompt_file;
  std::string prompts_file;
  std::string baseline;
  bool report = false;
};

/// One entry of the batch: text and what its JSONL line overrides.
struct PromptText {
  std::string text;
  SamplingParams params;
  std::string where = {};  ///< of the line
};

PromptText parse_prompt_line(std::string_view line, const std::string& where,
                             const SamplingParams& defaults) {
  const nlohmann::json json = parse_json(line, where);
  check(json.is_object() && json.contains("prompt") && json["prompt"].is_string(),
        "{}: must be a JSON object with a string \"prompt\"", where);
  PromptText result{json["prompt"], defaults, where};
  for (const auto& [key, value] : json.items()) {
    if (key == "n") {
      check(value.is_number_integer() && value >= 1 && value <= 1 << 24,
            "{}: \"n\" must be a whole number from 1 to {}", where, 1 << 24);
      result.params.max_tokens = value;
    } else if (key == "seed") {
      check(value.is_number_unsigned(), "{}: \"seed\" must be a whole number ≥ 0", where);
      result.params.seed = value;
    } else if (key == "stop") {
      result.params.stop.clear();
      const auto list = value.is_string() ? nlohmann::json::array({value}) : value;
      check(list.is_array(), "{}: \"stop\" must be a string or a list of strings", where);
      for (const auto& stop : list) {
        check(stop.is_string() && !stop.get_ref<const std::string&>().empty(),
              "{}: \"stop\" must hold non-empty strings", where);
        result.params.stop.push_back(stop);
      }
    } else {
      check(key == "prompt", "{}: unknown field \"{}\" (known: prompt, n, stop, seed)", where, key);
    }
  }
  naming(where, [&] { check_sampling_params(result.params); });
  return result;
}

std::vector<PromptText> read_prompts(const GenerateFlags& flags) {
  const int given = flags.prompt.has_value() + !flags.prompt_file.empty() + !flags.prompts_file.empty();
  if (given == 0) throw UsageError("generate: give a prompt: -p, -f or --prompts");
  if (given > 1) throw UsageError("generate: -p, -f and --prompts exclude one another");
  const SamplingParams params = flags.sampling.params(flags.common.seed);
  if (flags.prompt) return {{*flags.prompt, params}};
  if (!flags.prompt_file.empty()) return {{read_text(flags.prompt_file), params}};
  const std::string text = read_text(flags.prompts_file);
  std::vector<PromptText> prompts;
  int line_number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    ++line_number;
    if (line.find_first_not_of(" \t\r") != std::string_view::npos) {
      prompts.push_back(
          parse_prompt_line(line, fmt::format("{} line {}", flags.prompts_file, line_number), params));
    }
    begin = end + 1;
  }
  check(!prompts.empty(), "{}: holds no prompts", flags.prompts_file);
  return prompts;
}

struct FinishedRun {
  std::vector<Prompt> prompts;
  GenerationRun run;
  RunReport report;
};

FinishedRun run_once(const GenerateFlags& flags, const std::vector<PromptText>& texts, bool dense,
                     bool stream) {
  EngineOptions options = flags.common.engine_options();
  flags.capacity.apply(options);
  // No more can run at once, so that workspace and cache are no larger than the job.
  options.max_num_seqs = std::min(options.max_num_seqs, int(std::min(texts.size(), size_t{1} << 20)));
  options.dense = dense;
  ProgressBar bar(dense ? "loading dense" : "loading", ProgressUnit::bytes);
  options.load_progress = bar.callback();
  const auto engine = Engine::create(options);
  check(engine->tokenizer(), "{}: no tokenizer files ({})", flags.common.model, kTokenizerFiles);
  FinishedRun finished;
  for (const PromptText& text : texts) {
    finished.prompts.push_back({engine->tokenizer()->encode(text.text, true), text.params, text.where});
    // Drawn by the prompt's number, not the request's: a warm-up must not change the text.
    auto& seed = finished.prompts.back().params.seed;
    if (!seed) seed = finished.prompts.size() - 1;
    naming(text.where, [&] {
      check(!finished.prompts.back().ids.empty(), "an empty prompt needs a model with a begin-of-text token");
    });
  }
  const bool measured = flags.report || !flags.baseline.empty();
  if (measured) warm_up(*engine, finished.prompts);
  const auto on_text = [](size_t, const std::string& text) { print_out(text); };
  finished.run =
      stream ? run_prompts(*engine, finished.prompts, on_text) : run_prompts(*engine, finished.prompts);
  if (measured) {
    finished.report = make_report(*engine, finished.run.times, flags.common.threads);
  } else {
    finished.report = {
        .memory = engine->memory(), .times = finished.run.times, .load_seconds = 0, .read = {}};
  }
  return finished;
}

nlohmann::json outputs_json(const FinishedRun& finished, bool logprobs) {
  nlohmann::json outputs = nlohmann::json::array();
  for (size_t i = 0; i < finished.prompts.size(); ++i) {
    const Generation& g = finished.run.outputs[i];
    outputs.push_back({{"prompt_ids", finished.prompts[i].ids},
                       {"output_ids", g.ids},
                       {"text", g.text},
                       {"finish_reason", to_string(g.finish)}});
    if (logprobs) outputs.back()["logprobs"] = logprobs_json(g.logprobs);
  }
  return outputs;
}

void run_generate(const GenerateFlags& flags) {
  flags.sampling.check_logprobs(flags.common.json);
  const auto texts = read_prompts(flags);
  const bool one = flags.prompts_file.empty();
  const bool stream = one && !flags.common.json;
  const FinishedRun sparse = run_once(flags, texts, false, stream);
  std::optional<FinishedRun> dense;
  if (stream) print_out("\n");
  if (!flags.baseline.empty()) dense = run_once(flags, texts, true, false);

  if (flags.common.json) {
    nlohmann::json document{{"outputs", outputs_json(sparse, flags.sampling.logprobs >= 0)},
                            {"timings", timings_json(sparse.report)},
                            {"memory", memory_json(sparse.report)}};
    if (dense) {
      document["baseline"] = {{"timings", timings_json(dense->report)},
                              {"memory", memory_json(dense->report)}};
      document["speedup"] = decode_speedup(sparse.report, dense->report);
    }
    return print_json(document);
  }
  if (!one) {
    for (size_t i = 0; i < texts.size(); ++i)
      print_out(fmt::format("--- {}\n{}{}\n", i + 1, texts[i].text, sparse.run.outputs[i].text));
  }
  if (flags.report || dense) {
    const std::string table =
        report_table(sparse.report, dense ? std::optional(dense->report) : std::nullopt);
    std::fputs(("\n" + table).c_str(), stderr);
  }
}

}  // namespace

void add_generate(CLI::App& app) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* command = app.add_subcommand("generate", "text from a prompt");
  flags->common.add_to(*command, CommonFlags::Model::required);
  flags->capacity.add_to(*command);
  flags->sampling.add_to(*command);
  command->add_option("-p,--prompt", flags->prompt, "prompt text; empty = begin-of-text only");
  command->add_option("-f,--file", flags->prompt_file, "prompt from a file; - = stdin")->check(not_empty());
  command
      ->add_option(
          "--prompts", flags->prompts_file,
          "many prompts, one JSON object a line: {\"prompt\": …, \"n\", \"stop\", \"seed\"}; - = stdin")
      ->check(not_empty());
  command
      ->add_option("--baseline", flags->baseline,
                   "dense: run the same masked weights dense as well and compare")
      ->check(CLI::IsMember({"dense"}));
  command->add_flag("--report", flags->report, "end with a table of weights, memory and latency");
  command->callback([flags] { run_generate(*flags); });
}

}  // namespace spinfer
