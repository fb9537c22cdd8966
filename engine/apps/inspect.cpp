// `spinfer inspect`: what is in a model directory.
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "engine/apps/command.h"
#include "engine/apps/options.h"
#include "engine/apps/output.h"
#include "engine/apps/report.h"
#include "kernels/check.h"
#include "kernels/thread_pool.h"
#include "models/checkpoint_tools.h"

namespace spinfer {
namespace {

struct InspectFlags {
  CommonFlags common;
  double min_sparsity = 0.3;
};

struct Totals {
  int64_t weights = 0, nonzeros = 0, dense_bytes = 0, packed_bytes = 0;
  double sparsity() const { return weights > 0 ? 1 - double(nonzeros) / double(weights) : 0; }
};

double sparsity_of(const LinearSummary& linear) {
  const int64_t weights = linear.m * linear.k;
  return weights > 0 ? 1 - double(linear.nonzeros) / double(weights) : 0;
}

void run_inspect(const InspectFlags& flags) {
  ThreadPool pool(flags.common.threads);
  const CheckpointSummary summary = summarize_checkpoint(flags.common.model, flags.min_sparsity, pool);
  Totals total;
  nlohmann::json linears = nlohmann::json::array();
  for (const LinearSummary& linear : summary.linears) {
    total.weights += linear.m * linear.k;
    total.nonzeros += linear.nonzeros;
    total.dense_bytes += linear.dense_bytes;
    total.packed_bytes += linear.packed_bytes;
    linears.push_back({{"name", linear.name},
                       {"m", linear.m},
                       {"k", linear.k},
                       {"sparsity", sparsity_of(linear)},
                       {"dense_bytes", linear.dense_bytes},
                       {"packed_bytes", linear.packed_bytes}});
  }
  if (flags.common.json) {
    return print_json({{"architecture", summary.config.architecture_name},
                       {"parameters", summary.parameters},
                       {"linears", linears},
                       {"total",
                        {{"dense_bytes", total.dense_bytes},
                         {"packed_bytes", total.packed_bytes},
                         {"sparsity", total.sparsity()},
                         {"other_bytes", summary.other_bytes}}}});
  }
  const ModelConfig& c = summary.config;
  print_out(
      fmt::format("{}: {:.2f} M parameters, {} layers, hidden {}, ffn {}, {} heads ({} KV) of {}, vocabulary "
                  "{}, {} positions\n",
                  c.architecture_name, double(summary.parameters) / 1e6, c.layers, c.hidden_size, c.ffn_size,
                  c.q_heads, c.kv_heads, c.head_dim, c.vocab_size, c.max_positions));
  print_out(
      fmt::format("{:<52} {:>13} {:>7} {:>11} {:>11}\n", "linear", "m x k", "zeros", "dense", "packed"));
  for (const LinearSummary& linear : summary.linears) {
    const bool stays_dense = linear.packed_bytes == linear.dense_bytes;
    print_out(fmt::format("{:<52} {:>13} {:>6.1f}% {:>11} {:>11}\n", linear.name,
                          fmt::format("{}x{}", linear.m, linear.k), sparsity_of(linear) * 100,
                          human_bytes(linear.dense_bytes),
                          stays_dense ? "dense" : human_bytes(linear.packed_bytes)));
  }
  print_out(fmt::format("{:<52} {:>13} {:>6.1f}% {:>11} {:>11}\n", "all linears", "", total.sparsity() * 100,
                        human_bytes(total.dense_bytes), human_bytes(total.packed_bytes)));
  print_out(fmt::format("embeddings, head, norms, biases: {}\n", human_bytes(summary.other_bytes)));
}

}  // namespace

void add_inspect(CLI::App& app) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* command =
      app.add_subcommand("inspect", "what is in a model directory: config, sparsity, bytes dense and packed");
  flags->common.add_to(*command, CommonFlags::Model::required);
  command->add_option("--min-sparsity", flags->min_sparsity, "linears with fewer zeros stay dense")
      ->check(number_in(0, 1, "0…1"))
      ->capture_default_str();
  command->callback([flags] { run_inspect(*flags); });
}

}  // namespace spinfer
