// Assembling a Model on a device from any source of weights: a checkpoint, or random numbers.
#pragma once

#include <functional>
#include <string>

#include "models/model.h"
#include "models/weight_table.h"

namespace spinfer {

/// Where weights come from. The first two hand out fp16 host memory that lives as long as the matrix
/// returned.
struct WeightSource {
  /// A whole tensor; a vector is one row.
  std::function<DenseMatrix(const TensorSpec& tensor)> tensor;
  /// Rows × columns of "<name>.weight", m×k, dense or packed.
  std::function<HostMatrix(const std::string& name, int64_t m, int64_t k, Range rows, Range cols)> block;
  /// If set, matrices are not asked of `block` and `tensor` but written to device memory [rows][cols]: a
  /// linear's, or a table's.
  enum class Kind { linear, table };
  std::function<void(const std::string& name, Kind kind, int64_t k, Range rows, Range cols, Half* out)> fill =
      {};
};

class Checkpoint;
/// Throws `Error` where the checkpoint holds a bias or a layer that the configuration knows nothing of: a
/// model, or a rewritten checkpoint, would silently be without it.
void check_nothing_left_out(const Checkpoint& checkpoint, const ModelConfig& config);
/// The weights of a checkpoint, which must outlive the source. Checks that nothing is left out.
WeightSource checkpoint_source(const Checkpoint& checkpoint, const ModelConfig& config);

/// Makes this rank's share of every weight resident: linears stacked, packed or dense as `options` say.
/// Throws `UsageError` as check_tensor_parallel does, before it asks for any weight.
Model build_model(const ModelConfig& config, const WeightSource& source, Device& device, ThreadPool& pool,
                  Shard shard, const LoadOptions& options);

/// For work layer by layer (models/layer_forward.h), on one rank, linears dense: a model of what comes before
/// the layers alone, and one whose only layer, layers[0], is layer `index`.
Model build_embeddings(const ModelConfig& config, const WeightSource& source, Device& device,
                       ThreadPool& pool);
Model build_layer(const ModelConfig& config, const WeightSource& source, Device& device, ThreadPool& pool,
                  int index);

}  // namespace spinfer
