// Calibration text on its way through a model, one layer at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "models/layer_forward.h"
#include "models/weight_table.h"

namespace spinfer {

/// Token ids of the samples: each is a sequence of its own.
using CalibrationSamples = std::vector<std::vector<int32_t>>;

/// Throws `Error` unless there is a token and all ids and lengths suit the model.
void check_samples(const CalibrationSamples& samples, const ModelConfig& config);

/// The hidden states of all samples between two layers, on the device: [tokens][d] fp16, and memory for one
/// batch of whole samples (2048 tokens or the longest sample).
class Calibration {
 public:
  /// Hidden states = the embeddings. `embeddings`: see build_embeddings; not needed afterwards.
  Calibration(Device& device, const Model& embeddings, const CalibrationSamples& samples);

  int64_t tokens() const { return tokens_; }
  int batches() const { return int(batches_.size()); }
  /// [tokens][d], sample after sample.
  std::vector<Half> hidden_states() const { return hidden_.download(hidden_.size()); }

  enum class After { keep, advance };  ///< the hidden states stay as they are, or become the layer's output
  /// Runs all samples through `layer`.layers[0] (see build_layer). `done` is called after each batch.
  void run(const Model& layer, After after, const LinearObserver& observer,
           const std::function<void()>& done);

 private:
  struct Batch {
    int64_t first = 0;  ///< row of the hidden states
    ForwardBatch forward;
    std::vector<DeviceArray<int32_t>> storage;  ///< of the index arrays
  };
  Batch make_batch(const CalibrationSamples& samples, size_t begin, size_t end, int64_t first);
  void copy(const Half* from, Half* to, int64_t rows);

  Device& device_;
  int64_t hidden_size_;
  int64_t tokens_ = 0;
  std::vector<Batch> batches_;
  DeviceArray<Half> hidden_;
  DeviceArray<int32_t> row_numbers_;  ///< 0, 1, …: gather_rows copies with them
  std::unique_ptr<Workspace> workspace_;
  DeviceArray<Half> keys_, values_;
  KvCacheView kv_;
};

/// What a layer's linears saw: sums over all tokens of their inputs, on the device.
class LayerStatistics {
 public:
  enum class Gram { none, all };
  LayerStatistics(Device& device, const LayerSpec& spec, Gram gram);

  /// For `layer`, whose linears are told apart by their addresses.
  LinearObserver observer(const LayerWeights& layer);

  struct Input {
    DeviceArray<double> squares;  ///< [k] Σ x²
    DeviceArray<float> gram;      ///< [k][k], lower triangle of Σ xᵀx; empty without
  };
  /// In the order of LayerSpec::linears().
  std::vector<Input>& inputs() { return inputs_; }

 private:
  Device& device_;
  std::vector<Input> inputs_;
};

}  // namespace spinfer
