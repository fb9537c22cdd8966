// What works on checkpoint directories: summary, packing, pruning, memory plan.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "kernels/thread_pool.h"
#include "models/config.h"
#include "models/model.h"
#include "models/pruning/calibration.h"

namespace spinfer {

/// One linear weight (or other tensor) of a checkpoint in the order of the model, for `inspect`.
struct LinearSummary {
  std::string name;  ///< Hugging Face name, e.g. "model.layers.0.self_attn.q_proj.weight"
  int64_t m = 0, k = 0;
  int64_t nonzeros = 0;
  int64_t dense_bytes = 0;
  int64_t packed_bytes = 0;  ///< = dense_bytes if it stays dense
  bool packed = false;
  int layer = 0;
  double stack_sparsity =
      0;  ///< of the linear it is stacked in (q, k, v; gate, up), which is packed whole or not
};
struct CheckpointSummary {
  ModelConfig config;
  int64_t parameters = 0;
  int64_t other_bytes = 0;  ///< embeddings, norms, biases, head: what stays dense fp16
  std::vector<LinearSummary> linears;
};
CheckpointSummary summarize_checkpoint(const std::filesystem::path& dir, double min_sparsity,
                                       ThreadPool& pool);

enum class PruneMethod { magnitude, wanda, sparsegpt };
enum class PruneScope { row, layer };  ///< the smallest |w| of each row, or of the whole matrix
struct PruneOptions {
  PruneMethod method = PruneMethod::magnitude;
  double sparsity = 0.5;                    ///< share of zeros, 0…1
  std::vector<double> layer_sparsity = {};  ///< of each layer; empty: `sparsity` everywhere
  PruneScope scope = PruneScope::row;       ///< of magnitude pruning
  double dampening = 0.01;                  ///< of SparseGPT's Hessian, in means of its diagonal
  bool dense_output = false;                ///< write dense safetensors instead of packed
  double min_sparsity = 0.3;
  std::function<void(int64_t done, int64_t total)> progress = {};
  std::function<void(const std::string& text)> note = {};  ///< what the user should know; one line
};

/// Writes a packed copy of checkpoint `in` to directory `out` (which must not exist, or be empty): config and
/// tokenizer files are copied, linears with at least min_sparsity zeros packed, others dense, however `in`
/// has them. Atomic: `out` appears complete or not at all.
void pack_checkpoint(const std::filesystem::path& in, const std::filesystem::path& out, double min_sparsity,
                     ThreadPool& pool, const std::function<void(int64_t done, int64_t total)>& progress);

/// The way back: dense fp16 safetensors that others read, bit for bit what was packed (a negative zero
/// becomes a positive one). Written like pack_checkpoint.
void unpack_checkpoint(const std::filesystem::path& in, const std::filesystem::path& out, ThreadPool& pool,
                       const std::function<void(int64_t done, int64_t total)>& progress);

/// Magnitude pruning of every linear (embeddings and head are kept), written like pack_checkpoint.
void prune_magnitude(const std::filesystem::path& in, const std::filesystem::path& out,
                     const PruneOptions& options, ThreadPool& pool);

/// Pruning of every linear by Wanda or SparseGPT, layer after layer: each layer's inputs are what the pruned
/// layers before it make of `samples`. One layer and the hidden states of all samples are on the device.
/// Pruned layers are kept in ".<name of out>.pruning" beside `out` until all are there, so that a run of the
/// same arguments goes on where one was interrupted, and writes the same bytes. Throws `Error` naming the
/// linear whose inputs are not finite, all zero (SparseGPT) or whose Hessian cannot be factored.
void prune_calibrated(const std::filesystem::path& in, const std::filesystem::path& out,
                      const PruneOptions& options, const CalibrationSamples& samples, Device& device,
                      ThreadPool& pool);

/// Sparsity of each layer after OWL (Yin et al. 2024): layers with more outliers, Wanda scores above
/// `outlier` times the layer's mean, keep more. The sparsities have the mean `sparsity` and a range of
/// 2·`lambda`, less where layers stop at 0 or 1.
struct OwlOptions {
  double sparsity = 0.5;
  double outlier = 5;
  double lambda = 0.08;
  std::function<void(int64_t done, int64_t total)> progress = {};
};
std::vector<double> owl_sparsity(const std::filesystem::path& in, const OwlOptions& options,
                                 const CalibrationSamples& samples, Device& device, ThreadPool& pool);

/// Bytes one rank needs for weights, without loading.
struct WeightPlan {
  int64_t parameters = 0;            ///< of the whole model, tied weights once
  int64_t dense_bytes = 0;           ///< this rank's weights in dense fp16
  int64_t packed_bytes = 0;          ///< the same with packed linears by the size formula
  int64_t packed_linears_bytes = 0;  ///< of these, what is packed
  int64_t workspace_dense = 0;       ///< scratch the largest linear takes on a GPU, all dense
  int64_t workspace_packed = 0;      ///< and with packed linears
};
/// How a linear is held. A rank's share of it has the sparsity of the whole.
struct LinearForm {
  double sparsity = 0;
  bool packed = false;
};
struct LinearSpec;
using LinearForms = std::function<LinearForm(const LinearSpec&)>;
/// `forms` of the linears of the layers; the head is dense.
WeightPlan plan_weights(const ModelConfig& config, const LinearForms& forms, Shard shard);
/// All linears have `sparsity`, packed unless it is below `min_sparsity`, as when loading.
LinearForms equal_forms(double sparsity, double min_sparsity);
/// As a checkpoint has them. `summary` must outlive the result.
LinearForms forms_of(const CheckpointSummary& summary);
WeightPlan plan_weights(const ModelConfig& config, double sparsity, Shard shard, double min_sparsity = 0.3);

}  // namespace spinfer
