// `spinfer pack` and `spinfer prune`: checkpoint in, packed (or pruned dense) checkpoint out.
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "engine/apps/command.h"
#include "engine/apps/interrupt.h"
#include "engine/apps/options.h"
#include "engine/apps/output.h"
#include "engine/apps/progress.h"
#include "engine/apps/report.h"
#include "kernels/check.h"
#include "kernels/thread_pool.h"
#include "models/checkpoint_tools.h"

namespace spinfer {
namespace {

/// A large matrix or a slow disk may take a while between two looks at SIGINT, and no half-written directory
/// may stay.
constexpr int kInterruptGrace = 60;

enum class Written { packed, dense };

/// Says what the new directory holds, and what it takes in memory.
void print_result(const std::string& out, Written written, double min_sparsity, bool json, ThreadPool& pool) {
  const CheckpointSummary summary = summarize_checkpoint(out, min_sparsity, pool);
  int64_t dense = 0, packed = 0, weights = 0, nonzeros = 0;
  int sparse_linears = 0;
  for (const LinearSummary& linear : summary.linears) {
    dense += linear.dense_bytes;
    packed += linear.packed_bytes;
    weights += linear.m * linear.k;
    nonzeros += linear.nonzeros;
    sparse_linears += linear.packed_bytes != linear.dense_bytes;
  }
  const double sparsity = weights > 0 ? 1 - double(nonzeros) / double(weights) : 0;
  if (json) {
    return print_json({{"output", out},
                       {"linears", summary.linears.size()},
                       {"packed_linears", sparse_linears},
                       {"sparsity", sparsity},
                       {"dense_bytes", dense},
                       {"packed_bytes", packed}});
  }
  const char* what = written == Written::packed ? "packed" : "written dense, sparse enough to pack";
  print_out(fmt::format("{}: {} of {} linears {}, {:.1f} % zeros, linear weights {} -> {}\n", out,
                        sparse_linears, summary.linears.size(), what, sparsity * 100, human_bytes(dense),
                        human_bytes(packed)));
}

struct PackFlags {
  CommonFlags common;
  std::string out;
  double min_sparsity = 0.3;
};

struct PruneFlags {
  PackFlags pack;
  std::string method = "magnitude";
  std::string scope = "row";
  double sparsity = 0.5;
  bool dense_output = false;
};

void add_output_flags(CLI::App& command, PackFlags& flags) {
  flags.common.add_to(command, CommonFlags::Model::required);
  command.add_option("-o,--output", flags.out, "directory to write; must not exist or be empty")
      ->check(not_empty())
      ->required();
  command.add_option("--min-sparsity", flags.min_sparsity, "linears with fewer zeros are written dense")
      ->check(number_in(0, 1, "0..1"))
      ->capture_default_str();
}

}  // namespace

void add_pack(CLI::App& app) {
  auto flags = std::make_shared<PackFlags>();
  CLI::App* command =
      app.add_subcommand("pack", "pruned Hugging Face directory → packed directory (TCA-BME)");
  add_output_flags(*command, *flags);
  command->callback([flags] {
    set_interrupt_grace(kInterruptGrace);
    ThreadPool pool(flags->common.threads);
    {
      ProgressBar bar("packing", ProgressUnit::bytes);
      pack_checkpoint(flags->common.model, flags->out, flags->min_sparsity, pool, bar.callback());
    }
    print_result(flags->out, Written::packed, flags->min_sparsity, flags->common.json, pool);
  });
}

void add_prune(CLI::App& app) {
  auto flags = std::make_shared<PruneFlags>();
  CLI::App* command = app.add_subcommand("prune", "dense directory → pruned directory, packed");
  add_output_flags(*command, flags->pack);
  command->add_option("--method", flags->method, "magnitude: drop the smallest |w|")
      ->check(CLI::Validator(
          [](std::string& text) -> std::string {
            if (text == "magnitude") return {};
            if (text == "wanda" || text == "sparsegpt")
              return fmt::format("{} needs calibration runs, which are not there yet; there is: magnitude",
                                 text);
            return fmt::format("'{}' is no method; there is: magnitude", text);
          },
          "magnitude"))
      ->capture_default_str();
  command->add_option("--scope", flags->scope, "row: the smallest of each row; layer: of the whole matrix")
      ->check(CLI::IsMember({"row", "layer"}))
      ->capture_default_str();
  command->add_option("--sparsity", flags->sparsity, "share of zeros")
      ->check(number_in(0, 1, "0..1"))
      ->capture_default_str();
  command->add_flag("--dense-output", flags->dense_output,
                    "write dense safetensors (zeros included) others can read");
  command->callback([flags] {
    set_interrupt_grace(kInterruptGrace);
    ThreadPool pool(flags->pack.common.threads);
    PruneOptions options;
    options.sparsity = flags->sparsity;
    options.scope = flags->scope == "row" ? PruneScope::row : PruneScope::layer;
    options.dense_output = flags->dense_output;
    options.min_sparsity = flags->pack.min_sparsity;
    {
      ProgressBar bar("pruning", ProgressUnit::bytes);
      options.progress = bar.callback();
      prune_magnitude(flags->pack.common.model, flags->pack.out, options, pool);
    }
    print_result(flags->pack.out, flags->dense_output ? Written::dense : Written::packed,
                 flags->pack.min_sparsity, flags->pack.common.json, pool);
  });
}

}  // namespace spinfer
