// What works on checkpoint directories without running them: summary, packing, magnitude pruning, memory
// plan.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "kernels/thread_pool.h"
#include "models/config.h"
#include "models/model.h"

namespace spinfer {

/// One linear weight (or other tensor) of a checkpoint in the order of the model, for `inspect`.
struct LinearSummary {
  std::string name;  ///< Hugging Face name, e.g. "model.layers.0.self_attn.q_proj.weight"
  int64_t m = 0, k = 0;
  int64_t nonzeros = 0;
  int64_t dense_bytes = 0;
  int64_t packed_bytes = 0;  ///< = dense_bytes if it stays dense
};
struct CheckpointSummary {
  ModelConfig config;
  int64_t parameters = 0;
  int64_t other_bytes = 0;  ///< embeddings, norms, biases, head: what stays dense fp16
  std::vector<LinearSummary> linears;
};
CheckpointSummary summarize_checkpoint(const std::filesystem::path& dir, double min_sparsity,
                                       ThreadPool& pool);

enum class PruneScope { row, layer };  ///< the smallest |w| of each row, or of the whole matrix
struct PruneOptions {
  double sparsity = 0.5;  ///< share of zeros, 0…1
  PruneScope scope = PruneScope::row;
  bool dense_output = false;  ///< write dense safetensors instead of packed
  double min_sparsity = 0.3;
  std::function<void(int64_t done, int64_t total)> progress = {};
};

/// Writes a packed copy of checkpoint `in` to directory `out` (which must not exist, or be empty): config and
/// tokenizer files are copied, linears with at least min_sparsity zeros packed, others dense, however `in`
/// has them. Atomic: `out` appears complete or not at all.
void pack_checkpoint(const std::filesystem::path& in, const std::filesystem::path& out, double min_sparsity,
                     ThreadPool& pool, const std::function<void(int64_t done, int64_t total)>& progress);

/// Magnitude pruning of every linear (embeddings and head are kept), written like pack_checkpoint.
void prune_magnitude(const std::filesystem::path& in, const std::filesystem::path& out,
                     const PruneOptions& options, ThreadPool& pool);

/// Bytes one rank needs for weights, without loading: from the config and the checkpoint's (or an assumed)
/// sparsity, the same in every linear. Linears below `min_sparsity` count as dense, as they do when loading.
struct WeightPlan {
  int64_t parameters = 0;            ///< of the whole model, tied weights once
  int64_t dense_bytes = 0;           ///< this rank's weights in dense fp16
  int64_t packed_bytes = 0;          ///< the same with packed linears by the size formula
  int64_t packed_linears_bytes = 0;  ///< of these, what is packed
  int64_t workspace_dense = 0;       ///< scratch the largest linear takes on a GPU, all dense
  int64_t workspace_packed = 0;      ///< and with packed linears
};
WeightPlan plan_weights(const ModelConfig& config, double sparsity, Shard shard, double min_sparsity = 0.3);

}  // namespace spinfer
