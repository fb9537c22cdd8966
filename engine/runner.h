// One rank of a model: its device, its share of the weights, the KV arrays and the workspace. Runs steps.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/batch.h"
#include "kernels/device.h"
#include "models/model.h"

namespace spinfer {

struct StepLimits;

/// What a step computed; rows as in Batch.
struct StepResult {
  std::vector<int32_t> ids;           ///< [samples] next tokens
  std::vector<float> logprobs;        ///< [logprob_rows] of those tokens
  std::vector<int32_t> top_ids;       ///< [logprob_rows][top]
  std::vector<float> top_logprobs;    ///< [logprob_rows][top]
  std::vector<float> score_logprobs;  ///< [scores]
  std::vector<float> score_logits;    ///< [scores][vocab], if kept
};

class Runner {
 public:
  /// Opens the device.
  Runner(const Backend& backend, const DeviceOptions& options, Shard shard);

  Device& device() { return device_; }
  Shard shard() const { return shard_; }
  /// Takes the weights, which must be on `device()`.
  void set_model(Model model) { model_ = std::move(model); }
  const Model& model() const { return *model_; }
  /// Makes the workspace for steps within `limits` and the KV arrays. After set_model.
  void allocate(const StepLimits& limits, int64_t kv_blocks, int block_size);

  /// Runs the forward pass and, on rank 0, the sampler; complete on return. Every rank of the group runs the
  /// same batch; the results of other ranks than 0 are empty.
  StepResult run(const Batch& batch);

  /// Whether results hold the logits of scored tokens.
  void keep_score_logits(bool keep) { keep_score_logits_ = keep; }

  /// Device bytes of the index and sampling arrays of steps within `limits`.
  static int64_t index_bytes(const StepLimits& limits);
  /// Device bytes of one KV block, all layers, on the rank with the most heads.
  static int64_t kv_block_bytes(const ModelConfig& config, int world, int block_size);

 private:
  ForwardBatch upload(const Batch& batch);
  void sample(const Batch& batch, StepResult& result);
  void score(const Batch& batch, StepResult& result);

  Device device_;  // outlives all arrays below
  Shard shard_;
  bool keep_score_logits_ = false;
  std::optional<Model> model_;
  std::unique_ptr<Workspace> workspace_;
  std::vector<DeviceArray<Half>>
      kv_arrays_;  // k and v of each layer: [blocks][kv_heads][block_size][head_dim]
  KvCacheView kv_;

  std::vector<int32_t> staging_;        // a step's index arrays, one after the other
  DeviceArray<int32_t> index_;          // the same on the device
  DeviceArray<SampleRow> sample_rows_;  // [max_seqs]
  DeviceArray<int32_t> seen_;           // grows with the longest list
  DeviceArray<int32_t> ids_;            // [max_seqs]
  DeviceArray<int32_t> score_targets_;  // [max_logits]
  DeviceArray<float> logprobs_;         // [max_logits]
  DeviceArray<int32_t> top_ids_;        // [max_seqs][kMaxLogprobs]
  DeviceArray<float> top_logprobs_;     // [max_seqs][kMaxLogprobs]
};

}  // namespace spinfer
