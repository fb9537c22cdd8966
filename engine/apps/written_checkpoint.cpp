#include "engine/apps/written_checkpoint.h"

#include <fmt/format.h>

#include "engine/apps/output.h"
#include "engine/human_bytes.h"
#include "models/checkpoint_tools.h"

namespace spinfer {

void OutputFlags::add_to(CLI::App& command, const FlagUses& uses) {
  common.add_to(command, CommonFlags::Model::required, uses);
  command.add_option("-o,--output", out, "directory to write; must not exist or be empty")
      ->check(not_empty())
      ->required();
  command.add_option("--min-sparsity", min_sparsity, "linears with fewer zeros are written dense")
      ->check(number_in(0, 1, "0..1"))
      ->capture_default_str();
}

void report_written(const OutputFlags& flags, Written written, ThreadPool& pool, const nlohmann::json& more) {
  const CheckpointSummary summary = summarize_checkpoint(flags.out, flags.min_sparsity, pool);
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
  if (flags.common.json) {
    nlohmann::json document = {{"output", flags.out},
                               {"linears", summary.linears.size()},
                               {"packed_linears", sparse_linears},
                               {"sparsity", sparsity},
                               {"dense_bytes", dense},
                               {"packed_bytes", packed}};
    document.update(more);
    return print_json(document);
  }
  const char* what = written == Written::packed ? "packed" : "written dense, sparse enough to pack";
  print_out(fmt::format("{}: {} of {} linears {}, {:.1f} % zeros, linear weights {} -> {}\n", flags.out,
                        sparse_linears, summary.linears.size(), what, sparsity * 100, human_bytes(dense),
                        human_bytes(packed)));
}

}  // namespace spinfer
