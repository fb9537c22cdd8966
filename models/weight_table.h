// Every tensor of a model: its Hugging Face name, its shape, and how tensor-parallel ranks share it. The one
// place where checkpoint names are written; loader, packer, pruner, planner and random weights all walk this
// table.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/config.h"
#include "models/model.h"

namespace spinfer {

/// Elements [begin, end) of a dimension.
struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
  friend bool operator==(const Range&, const Range&) = default;
};

/// Which part of a dimension belongs to a rank.
enum class Share {
  all,       ///< every rank has it whole
  q_heads,   ///< q_heads/world heads each
  kv_heads,  ///< kv_heads/world heads each; one each, replicated, where there are fewer heads than ranks
  ffn,       ///< multiples of 64 features, the first ranks taking more where they do not divide
  vocab,     ///< the same with vocabulary rows
};

/// This rank's part of a dimension of `size`. Legal worlds only: see check_tensor_parallel.
Range share_of(Share share, int64_t size, const ModelConfig& config, Shard shard);

/// This rank's sizes.
struct ShardSizes {
  ShardSizes(const ModelConfig& config, Shard shard);
  int64_t q_size, kv_size;  ///< heads · head_dim
  int64_t ffn;
  Range vocab;
};

/// A tensor that is no linear weight: [rows] or [rows][cols]. Every rank has it whole.
struct TensorSpec {
  std::string name;  ///< empty: the model has none
  int64_t rows = 0;
  int64_t cols = 0;  ///< 0: a vector
};

/// One Hugging Face matrix of a linear: "<name>.weight" [m][k] and, with bias, "<name>.bias" [m].
struct LinearPart {
  std::string name;
  int64_t m = 0;
  Share rows = Share::all;  ///< how ranks share m
};

/// One linear of the forward pass: parts of one k stacked along m.
/// Rows shared: column-parallel. Columns shared: row-parallel, its bias belongs to rank 0.
struct LinearSpec {
  std::vector<LinearPart> parts;  ///< empty: the model has none
  int64_t k = 0;
  Share cols = Share::all;  ///< how ranks share k
  bool bias = false;
  bool gated = false;  ///< two parts, gate and up

  int64_t m() const;  ///< of the whole model
};

struct NormSpec {
  TensorSpec gain, bias;
};

struct LayerSpec {
  NormSpec attn_norm, mlp_norm;
  LinearSpec qkv, attn_out, mlp_in, mlp_out;

  std::vector<const LinearSpec*> linears() const { return {&qkv, &attn_out, &mlp_in, &mlp_out}; }
};

struct WeightTable {
  TensorSpec embedding;  ///< [vocab][embed_size]
  TensorSpec positions;  ///< [max_positions + offset][d]
  LinearSpec project_in, project_out;
  std::vector<LayerSpec> layers;
  NormSpec final_norm;
  LinearSpec head;  ///< [vocab][embed_size]; empty where it is tied to the embedding

  /// What is not a linear of a layer, in the order of the model: embeddings, projections, norms, head; biases
  /// of linears are not among them.
  std::vector<TensorSpec> other_tensors() const;
  int64_t parameters() const;
};

WeightTable weight_table(const ModelConfig& config);

}  // namespace spinfer
