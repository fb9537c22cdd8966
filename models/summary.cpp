// Counting the weights of a checkpoint or a configuration without a device.
#include <algorithm>
#include <map>

#include "kernels/gpu_footprint.h"
#include "models/build_model.h"
#include "models/checkpoint.h"
#include "models/checkpoint_tools.h"
#include "models/weight_table.h"

namespace spinfer {
namespace {

int64_t nonzeros_of(const Checkpoint& checkpoint, const LinearPart& part, int64_t k, ThreadPool& pool) {
  const std::string name = part.name + ".weight";
  if (checkpoint.is_packed(name)) return checkpoint.packed(name, part.m, k).view().nonzeros;
  return count_nonzeros(checkpoint.dense_block(name, part.m, k, {0, part.m}, {0, k}), pool);
}

}  // namespace

CheckpointSummary summarize_checkpoint(const std::filesystem::path& dir, double min_sparsity,
                                       ThreadPool& pool) {
  CheckpointSummary summary;
  summary.config = load_config(dir);
  const Checkpoint checkpoint(dir, pool);
  check_nothing_left_out(checkpoint, summary.config);
  const WeightTable table = weight_table(summary.config);
  summary.parameters = table.parameters();
  for (const TensorSpec& spec : table.other_tensors()) {
    const DenseMatrix tensor = checkpoint.tensor(spec);
    summary.other_bytes += 2 * tensor.m * tensor.k;
  }
  for (const LayerSpec& layer : table.layers) {
    for (const LinearSpec* linear : layer.linears()) {
      const size_t first = summary.linears.size();
      int64_t nonzeros = 0;
      bool packed = false;
      for (const LinearPart& part : linear->parts) {
        LinearSummary line{part.name + ".weight", part.m, linear->k, 0, 2 * part.m * linear->k, 0};
        line.nonzeros = nonzeros_of(checkpoint, part, linear->k, pool);
        nonzeros += line.nonzeros;
        packed = packed || checkpoint.is_packed(line.name);
        if (linear->bias) summary.other_bytes += 2 * part.m;
        summary.linears.push_back(std::move(line));
      }
      // As when loading: the parts of one stacked linear are packed together or not at all.
      packed = packed || double(nonzeros) <= (1 - min_sparsity) * double(linear->m()) * double(linear->k);
      for (size_t i = first; i < summary.linears.size(); ++i) {
        LinearSummary& line = summary.linears[i];
        line.layer = int(&layer - table.layers.data());
        line.stack_sparsity = 1 - double(nonzeros) / (double(linear->m()) * double(linear->k));
        line.packed = packed;
        line.packed_bytes = packed ? tca_bme_bytes(line.m, line.k, line.nonzeros) : line.dense_bytes;
      }
    }
  }
  return summary;
}

LinearForms equal_forms(double sparsity, double min_sparsity) {
  return [=](const LinearSpec&) { return LinearForm{sparsity, sparsity >= min_sparsity}; };
}

LinearForms forms_of(const CheckpointSummary& summary) {
  std::map<std::string, const LinearSummary*> lines;
  for (const LinearSummary& line : summary.linears) lines[line.name] = &line;
  return [lines = std::move(lines)](const LinearSpec& linear) {
    const LinearSummary& line = *lines.at(linear.parts.front().name + ".weight");
    return LinearForm{line.stack_sparsity, line.packed};
  };
}

WeightPlan plan_weights(const ModelConfig& config, double sparsity, Shard shard, double min_sparsity) {
  return plan_weights(config, equal_forms(sparsity, min_sparsity), shard);
}

WeightPlan plan_weights(const ModelConfig& config, const LinearForms& forms, Shard shard) {
  const WeightTable table = weight_table(config);
  WeightPlan plan;
  plan.parameters = table.parameters();
  const auto add = [&](int64_t dense, int64_t packed) {
    plan.dense_bytes += dense;
    plan.packed_bytes += packed;
  };
  const auto add_linear = [&](const LinearSpec& linear, LinearForm form) {
    int64_t m = 0;
    for (const LinearPart& part : linear.parts) m += share_of(part.rows, part.m, config, shard).size();
    const int64_t k = share_of(linear.cols, linear.k, config, shard).size(), dense = 2 * m * k;
    const auto nonzeros = int64_t(double(m) * double(k) * (1 - form.sparsity) + 0.5);
    add(dense, form.packed ? tca_bme_bytes(m, k, nonzeros) : dense);
    if (form.packed) plan.packed_linears_bytes += tca_bme_bytes(m, k, nonzeros);
    plan.workspace_dense = std::max(plan.workspace_dense, gpu_linear_workspace_bytes(m, k, false));
    plan.workspace_packed = std::max(plan.workspace_packed, gpu_linear_workspace_bytes(m, k, form.packed));
    if (linear.bias && (linear.cols == Share::all || shard.rank == 0)) add(2 * m, 2 * m);
  };
  for (const TensorSpec& t : table.other_tensors()) {
    if (!table.head.parts.empty() && t.name == table.head.parts.front().name + ".weight") continue;
    const int64_t bytes = 2 * t.rows * std::max<int64_t>(1, t.cols);
    add(bytes, bytes);
  }
  add_linear(table.head, {});
  for (const LayerSpec& layer : table.layers) {
    for (const LinearSpec* linear : layer.linears()) add_linear(*linear, forms(*linear));
  }
  return plan;
}

}  // namespace spinfer
