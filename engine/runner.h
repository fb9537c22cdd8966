// One rank of a model: its device, its share of the weights, the KV arrays and the workspace. Runs steps.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "engine/batch.h"
#include "engine/decode_shape.h"
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
  double idle_seconds = 0;  ///< of the device, between the end of the step before and the ops of this one
};

/// Steps that may be queued and not collected: the GPU works on one while the host prepares the other.
inline constexpr int kStepsInFlight = 2;

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

  /// Decode steps are padded to few shapes, recorded once each and queued as a whole. Off until called.
  void use_graphs() { graphs_in_use_ = true; }

  /// Steps may be submitted whose tokens are those the step before samples: every rank then samples, so that
  /// each has them on its device. Off until called.
  void feed_tokens_back() { feeds_tokens_back_ = true; }

  /// Queues the forward pass and, on rank 0, the sampler. Every rank of the group runs the same batches.
  /// Tokens that the last step queued samples are written -1-row in `batch`. At most kStepsInFlight steps may
  /// be uncollected.
  void submit(const Batch& batch);
  /// Waits for the oldest uncollected step. The results of other ranks than 0 are empty.
  StepResult collect();

  /// See Backend::leave_out; for measurements.
  void leave_out(uint32_t kinds);

  /// Whether results hold the logits of scored tokens.
  void keep_score_logits(bool keep) { keep_score_logits_ = keep; }

  /// Device bytes of the index and sampling arrays of steps within `limits`.
  static int64_t index_bytes(const StepLimits& limits);
  /// Device bytes of one KV block, all layers, on the rank with the most heads.
  static int64_t kv_block_bytes(const ModelConfig& config, int world, int block_size);

 private:
  /// A step's index arrays on the device.
  struct Uploaded {
    ForwardBatch forward;
    const SampleRow* sample_rows = nullptr;
    const int32_t* score_targets = nullptr;
  };
  /// The results of a step on their way to the host.
  struct InFlight {
    uint64_t begin = 0, end = 0;  ///< marks around the step's ops
    int samples = 0, logprob_rows = 0, scores = 0;
    int64_t listed = 0;               ///< alternatives of all logprob rows
    HostArray<int32_t> ids;           ///< [max_seqs]
    HostArray<float> logprobs;        ///< [max_seqs]
    HostArray<int32_t> top_ids;       ///< [max_seqs][kMaxLogprobs]
    HostArray<float> top_logprobs;    ///< [max_seqs][kMaxLogprobs]
    HostArray<float> score_logprobs;  ///< [max_logits]
    std::vector<float> score_logits;
  };
  /// A decode shape's recorded forward pass.
  struct Recorded {
    bool ran_before = false;
    RecordedWork work;
  };

  Uploaded upload(const Batch& batch);
  /// `list` on the device, in `array`, which grows with the longest; null where it is empty.
  template <class T>
  const T* place_list(const std::vector<T>& list, DeviceArray<T>& array);
  void run_decode(const ForwardBatch& batch, DecodeShape shape);
  void sample(const Batch& batch, const Uploaded& uploaded, InFlight& results);
  void score(const Batch& batch, const Uploaded& uploaded, InFlight& results);

  Device device_;  // outlives all arrays below
  Shard shard_;
  bool keep_score_logits_ = false;
  bool graphs_in_use_ = false;
  bool feeds_tokens_back_ = false;
  int max_seqs_ = 0;
  int64_t max_blocks_ = 0;
  std::optional<Model> model_;
  std::unique_ptr<Workspace> workspace_;
  std::vector<DeviceArray<Half>>
      kv_arrays_;  // k and v of each layer: [blocks][kv_heads][block_size][head_dim]
  KvCacheView kv_;

  std::vector<int32_t> staging_;  // a step's index arrays, one after the other
  DeviceArray<int32_t> index_;    // the same on the device
  DeviceArray<int32_t> seen_;
  DeviceArray<TokenBias> biases_;
  DeviceArray<int32_t> ids_;         // [max_seqs]
  DeviceArray<float> logprobs_;      // [max_logits]
  DeviceArray<int32_t> top_ids_;     // [max_seqs][kMaxLogprobs]
  DeviceArray<float> top_logprobs_;  // [max_seqs][kMaxLogprobs]
  std::array<InFlight, kStepsInFlight> in_flight_;
  uint64_t submitted_ = 0, collected_ = 0;
  std::optional<uint64_t> last_end_;  // mark of the last step collected
  std::map<DecodeShape, Recorded> recorded_;
};

}  // namespace spinfer
