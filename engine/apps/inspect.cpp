// `spinfer inspect`: what is in a model directory.
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "engine/apps/command.h"
#include "engine/apps/layer_report.h"
#include "engine/apps/options.h"
#include "engine/apps/output.h"
#include "engine/apps/plan_report.h"
#include "engine/human_bytes.h"
#include "kernels/check.h"
#include "kernels/thread_pool.h"
#include "models/checkpoint_tools.h"
#include "models/weight_table.h"

namespace spinfer {
namespace {

struct InspectFlags {
  CommonFlags common;
  CapacityFlags capacity;
  ConfigFlags config;
  double min_sparsity = 0.3;
  bool plan = false;
  int64_t gpu_memory = 0;
};

double sparsity_of(const LinearSummary& linear) {
  const int64_t weights = linear.m * linear.k;
  return weights > 0 ? 1 - double(linear.nonzeros) / double(weights) : 0;
}

/// As if each linear of the model had `sparsity`.
CheckpointSummary summarize_config(const std::string& path, double sparsity, double min_sparsity) {
  CheckpointSummary summary;
  summary.config = load_config(path);
  const WeightTable table = weight_table(summary.config);
  summary.parameters = table.parameters();
  int64_t linear_weights = 0;
  for (const LayerSpec& layer : table.layers) {
    for (const LinearSpec* linear : layer.linears()) {
      for (const LinearPart& part : linear->parts) {
        LinearSummary line{part.name + ".weight", part.m, linear->k, 0, 2 * part.m * linear->k, 0};
        line.nonzeros = int64_t(double(line.m) * double(line.k) * (1 - sparsity) + 0.5);
        line.packed = sparsity >= min_sparsity;
        line.packed_bytes = line.packed ? tca_bme_bytes(line.m, line.k, line.nonzeros) : line.dense_bytes;
        line.layer = int(&layer - table.layers.data());
        line.stack_sparsity = sparsity;
        linear_weights += line.m * line.k;
        summary.linears.push_back(std::move(line));
      }
    }
  }
  summary.other_bytes = 2 * (summary.parameters - linear_weights);
  return summary;
}

nlohmann::json summary_json(const CheckpointSummary& summary, const LinearTotals& total,
                            double min_sparsity) {
  nlohmann::json linears = nlohmann::json::array();
  for (const LinearSummary& linear : summary.linears) {
    linears.push_back({{"name", linear.name},
                       {"m", linear.m},
                       {"k", linear.k},
                       {"sparsity", sparsity_of(linear)},
                       {"dense_bytes", linear.dense_bytes},
                       {"packed_bytes", linear.packed_bytes}});
    if (const auto why = dense_reason(linear, min_sparsity); !why.empty())
      linears.back()["dense_reason"] = why;
  }
  return {{"architecture", summary.config.architecture_name},
          {"parameters", summary.parameters},
          {"linears", linears},
          {"layers", layers_json(summary.linears)},
          {"total",
           {{"dense_bytes", total.dense_bytes},
            {"packed_bytes", total.packed_bytes},
            {"sparsity", total.sparsity()},
            {"other_bytes", summary.other_bytes}}}};
}

std::string config_line(const CheckpointSummary& summary) {
  const ModelConfig& c = summary.config;
  return fmt::format(
      "{}: {:.2f} M parameters, {} layers, hidden {}, ffn {}, {} heads ({} KV) of {}, vocabulary {}, {} "
      "positions\n",
      c.architecture_name, double(summary.parameters) / 1e6, c.layers, c.hidden_size, c.ffn_size, c.q_heads,
      c.kv_heads, c.head_dim, c.vocab_size, c.max_positions);
}

std::string linears_table(const CheckpointSummary& summary, const LinearTotals& total, double min_sparsity) {
  std::string table =
      fmt::format("{:<52} {:>13} {:>7} {:>11} {:>11}\n", "linear", "m x k", "zeros", "dense", "packed");
  for (const LinearSummary& linear : summary.linears) {
    const std::string why = dense_reason(linear, min_sparsity);
    table += fmt::format("{:<52} {:>13} {:>6.1f}% {:>11} {:>11}\n", linear.name,
                         fmt::format("{}x{}", linear.m, linear.k), sparsity_of(linear) * 100,
                         human_bytes(linear.dense_bytes),
                         why.empty() ? human_bytes(linear.packed_bytes) : "dense: " + why);
  }
  table += fmt::format("{:<52} {:>13} {:>6.1f}% {:>11} {:>11}\n", "all linears", "", total.sparsity() * 100,
                       human_bytes(total.dense_bytes), human_bytes(total.packed_bytes));
  return table + layers_table(summary.linears) +
         fmt::format("embeddings, head, norms, biases: {}\n", human_bytes(summary.other_bytes));
}

PlanReport make_plan(const InspectFlags& flags, const CheckpointSummary& summary, const LinearTotals& total) {
  EngineOptions options = flags.common.engine_options();
  flags.capacity.apply(options);
  options.min_sparsity = flags.min_sparsity;
  const std::optional<int64_t> gpu_bytes = flags.gpu_memory > 0 ? flags.gpu_memory : gpu_0_bytes();
  PlanReport plan = plan_run(summary.config, options, forms_of(summary), total.sparsity(),
                             gpu_bytes.value_or(kAssumedGpuBytes));
  plan.gpu_assumed = !gpu_bytes;
  return plan;
}

void run_inspect(const InspectFlags& flags) {
  flags.config.check_source(flags.common.model);
  if (flags.gpu_memory > 0 && !flags.plan) throw UsageError("--gpu-memory: only with --plan");
  ThreadPool pool(flags.common.threads);
  const CheckpointSummary summary =
      flags.config.given()
          ? summarize_config(flags.config.config, flags.config.assumed_sparsity(), flags.min_sparsity)
          : summarize_checkpoint(flags.common.model, flags.min_sparsity, pool);
  const LinearTotals total = total_of(summary.linears);
  std::optional<PlanReport> plan;
  if (flags.plan) plan = make_plan(flags, summary, total);
  if (flags.common.json) {
    nlohmann::json document = summary_json(summary, total, flags.min_sparsity);
    if (plan) document["plan"] = plan_json(*plan);
    return print_json(document);
  }
  print_out(config_line(summary));
  print_out(plan ? plan_table(*plan) : linears_table(summary, total, flags.min_sparsity));
}

}  // namespace

void add_inspect(CLI::App& app) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* command =
      app.add_subcommand("inspect", "what is in a model directory: config, sparsity, bytes dense and packed");
  flags->common.add_to(*command, CommonFlags::Model::optional, {.ranks = true, .threads = true});
  flags->capacity.add_to(*command);
  flags->config.add_to(*command, "a config.json instead of -m, its linears assumed sparse");
  command
      ->add_option("--min-sparsity", flags->min_sparsity,
                   "linears with fewer zeros stay dense, unless they are packed already")
      ->check(number_in(0, 1, "0..1"))
      ->capture_default_str();
  command->add_flag("--plan", flags->plan,
                    "what a run would need of each GPU, sparse and dense, without loading");
  command
      ->add_option("--gpu-memory", flags->gpu_memory,
                   "bytes of a GPU; default: GPU 0's, or 80 GiB without one")
      ->check(whole_number_in(1, int64_t{1} << 50));
  command->callback([flags] { run_inspect(*flags); });
}

}  // namespace spinfer
