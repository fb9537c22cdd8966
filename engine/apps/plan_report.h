// What a run would need of each GPU, sparse next to dense, without loading anything: `inspect --plan`.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "engine/engine.h"
#include "models/checkpoint_tools.h"
#include "models/config.h"

namespace spinfer {

/// One way to hold the weights.
struct PlanColumn {
  int64_t weights_bytes = 0;  ///< of the rank with the largest share
  int64_t layout_bytes = 0;   ///< what a GPU's order of the same bits takes more
  int64_t workspace_bytes = 0;
  int64_t overhead_bytes = 0;  ///< CUDA context, cuBLAS, scratch of linears
  int64_t kv_bytes_per_token = 0;
  int64_t kv_bytes = 0;       ///< what the engine would take
  int64_t max_kv_tokens = 0;  ///< tokens whose keys and values fit beside the rest
  std::string refusal;        ///< why it does not fit; empty: it does
  /// What the driver will say is in use.
  int64_t total_bytes() const {
    return weights_bytes + layout_bytes + workspace_bytes + overhead_bytes + kv_bytes;
  }
};

struct PlanReport {
  int tensor_parallel = 1;
  int64_t gpu_bytes = 0;
  bool gpu_assumed = false;  ///< there is none here, and none was given
  double utilization = 0;    ///< share of it that may be used
  int max_num_seqs = 0;
  int64_t max_model_len = 0;
  double sparsity = 0;
  PlanColumn sparse, dense;
};

/// `forms` says how the linears are held, `sparsity` what of all of them is zero. Throws `UsageError` for a
/// --tp or --max-model-len the model does not allow.
PlanReport plan_run(const ModelConfig& config, const EngineOptions& options, const LinearForms& forms,
                    double sparsity, int64_t gpu_bytes);

/// Memory of GPU 0, or nothing where there is none.
std::optional<int64_t> gpu_0_bytes();
inline constexpr int64_t kAssumedGpuBytes = int64_t{80} << 30;

nlohmann::json plan_json(const PlanReport& plan);
std::string plan_table(const PlanReport& plan);

}  // namespace spinfer
