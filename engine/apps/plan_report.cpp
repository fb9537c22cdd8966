#include "engine/apps/plan_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "engine/human_bytes.h"
#include "engine/memory_plan.h"
#include "engine/runner.h"
#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/gpu_footprint.h"

namespace spinfer {
namespace {

PlanColumn plan_column(const ModelConfig& config, const EngineOptions& options, int64_t weights_bytes,
                       int64_t layout_bytes, int64_t scratch_bytes, int64_t gpu_bytes) {
  PlanColumn column;
  column.weights_bytes = weights_bytes;
  column.layout_bytes = layout_bytes;
  column.overhead_bytes = kGpuContextBytes + kGpuBlasWorkspaceBytes + scratch_bytes;
  column.kv_bytes_per_token =
      Runner::kv_block_bytes(config, options.tensor_parallel, options.block_size) / options.block_size;
  const RankBudget budget =
      budget_of_gpu(options, gpu_bytes, weights_bytes + layout_bytes, column.overhead_bytes);
  try {
    const MemoryPlan plan = plan_memory(config, options, budget);
    column.workspace_bytes = plan.workspace_bytes;
    column.kv_bytes = plan.kv_bytes();
    column.max_kv_tokens =
        (budget.left_bytes - plan.workspace_bytes) / plan.kv_block_bytes * options.block_size;
  } catch (const UsageError&) {
    throw;
  } catch (const Error& error) {
    column.refusal = error.what();
  }
  return column;
}

nlohmann::json column_json(const PlanColumn& c) {
  nlohmann::json json{{"fits", c.refusal.empty()},
                      {"weights_bytes", c.weights_bytes},
                      {"kv_bytes_per_token", c.kv_bytes_per_token}};
  if (!c.refusal.empty()) {
    json["reason"] = c.refusal;
    return json;
  }
  json.update({{"workspace_bytes", c.workspace_bytes},
               {"layout_bytes", c.layout_bytes},
               {"overhead_bytes", c.overhead_bytes},
               {"kv_bytes", c.kv_bytes},
               {"total_bytes", c.total_bytes()},
               {"max_kv_tokens", c.max_kv_tokens}});
  return json;
}

}  // namespace

PlanReport plan_run(const ModelConfig& config, const EngineOptions& options, const LinearForms& forms,
                    double sparsity, int64_t gpu_bytes) {
  check_engine_options(options);
  check_tensor_parallel(config, options.tensor_parallel);
  const WeightPlan weights = plan_weights(config, forms, {0, options.tensor_parallel});
  PlanReport plan{.tensor_parallel = options.tensor_parallel,
                  .gpu_bytes = gpu_bytes,
                  .utilization = options.gpu_memory_utilization,
                  .max_num_seqs = options.max_num_seqs,
                  .max_model_len = options.max_model_len > 0 ? options.max_model_len : config.max_positions,
                  .sparsity = sparsity,
                  .sparse = {},
                  .dense = {}};
  const auto layout = int64_t(kGpuLayoutOverhead * double(weights.packed_linears_bytes));
  plan.sparse = plan_column(config, options, weights.packed_bytes, layout,
                            weights.workspace_packed + kGpuPartialSumBytes, gpu_bytes);
  plan.dense = plan_column(config, options, weights.dense_bytes, 0, weights.workspace_dense, gpu_bytes);
  return plan;
}

std::optional<int64_t> gpu_0_bytes() {
  if (!cuda_backend() || cuda_backend()->device_count() == 0) return std::nullopt;
  return Device(*cuda_backend(), {}).info().total_bytes;
}

nlohmann::json plan_json(const PlanReport& plan) {
  return {{"tensor_parallel", plan.tensor_parallel},
          {"gpu_bytes", plan.gpu_bytes},
          {"gpu_assumed", plan.gpu_assumed},
          {"gpu_memory_utilization", plan.utilization},
          {"max_num_seqs", plan.max_num_seqs},
          {"max_model_len", plan.max_model_len},
          {"sparsity", plan.sparsity},
          {"sparse", column_json(plan.sparse)},
          {"dense", column_json(plan.dense)}};
}

std::string plan_table(const PlanReport& plan) {
  std::string table = fmt::format(
      "plan for each of {} GPU{} with {}{}, {:.0f} % of it used: up to {} requests of up to {} tokens\n"
      "  {:<28}{:>14}{:>14}\n",
      plan.tensor_parallel, plan.tensor_parallel == 1 ? "" : "s", human_bytes(plan.gpu_bytes),
      plan.gpu_assumed ? " (assumed, there is none here)" : "", plan.utilization * 100, plan.max_num_seqs,
      plan.max_model_len, "", fmt::format("{:.0f} % zeros", plan.sparsity * 100), "dense");
  const auto row = [&](const char* label, bool known_without_fit, const auto& value) {
    const auto cell = [&](const PlanColumn& c) {
      return known_without_fit || c.refusal.empty() ? std::string(value(c)) : "-";
    };
    table += fmt::format("  {:<28}{:>14}{:>14}\n", label, cell(plan.sparse), cell(plan.dense));
  };
  // What is compared and added up has one unit: the larger weights'.
  const int64_t weights = std::max(plan.sparse.weights_bytes, plan.dense.weights_bytes);
  const auto bytes = [weights](int64_t count) { return human_bytes(count, weights); };
  row("weights", true, [&](const PlanColumn& c) { return bytes(c.weights_bytes); });
  row("their device layout", true, [&](const PlanColumn& c) { return bytes(c.layout_bytes); });
  row("workspace", false, [&](const PlanColumn& c) { return bytes(c.workspace_bytes); });
  row("CUDA, cuBLAS, scratch", false, [&](const PlanColumn& c) { return bytes(c.overhead_bytes); });
  row("KV cache, a token", true, [](const PlanColumn& c) { return human_bytes(c.kv_bytes_per_token); });
  row("KV cache", false, [&](const PlanColumn& c) { return bytes(c.kv_bytes); });
  row("total", false, [&](const PlanColumn& c) { return bytes(c.total_bytes()); });
  row("tokens that fit the KV cache", false,
      [](const PlanColumn& c) { return fmt::format("{}", c.max_kv_tokens); });
  for (const auto& [label, column] : {std::pair("sparse", plan.sparse), std::pair("dense", plan.dense)}) {
    if (!column.refusal.empty()) table += fmt::format("  {} does not fit: {}\n", label, column.refusal);
  }
  return table;
}

}  // namespace spinfer
