// A model resident on one rank, and the forward pass over it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "models/config.h"

namespace spinfer {

class Checkpoint;

/// Where one rank stands in its tensor-parallel group.
struct Shard {
  int rank = 0;
  int world = 1;
};

/// Gain and bias of a norm; null where the model has none.
struct NormWeights {
  const Half* gain = nullptr;  ///< [d]
  const Half* bias = nullptr;  ///< [d]
  float bound = 1;             ///< the largest |gain|; 1 where that is zero or no number
};

/// What a layer norm left to the linear that reads it needs of that linear, see DeferredNorm; empty: it is
/// not.
struct NormProducts {
  DeviceArray<float> gain, bias;  ///< [m]
};

/// One transformer layer. Sizes are this rank's shares: hq, hkv heads and f features.
struct LayerWeights {
  NormWeights attn_norm, mlp_norm;
  LinearWeight qkv;       ///< [(hq + 2·hkv)·head_dim][d]: q, k, v stacked; column-parallel
  LinearWeight attn_out;  ///< [d][hq·head_dim]; row-parallel, bias on rank 0 only
  LinearWeight mlp_in;    ///< [2·f][d] gate, up stacked, or [f][d] (OPT's fc1); column-parallel
  LinearWeight mlp_out;   ///< [d][f]; row-parallel, bias on rank 0 only
  NormProducts qkv_products, mlp_in_products;  ///< with attn_norm and mlp_norm
};

/// Bytes and sparsity of what was loaded, for reports. Of this rank, unless said.
struct WeightReport {
  int64_t parameters = 0;      ///< of the whole model, tied weights once
  int64_t linear_weights = 0;  ///< elements of this rank's linears (LM head apart)
  int64_t linear_nonzeros = 0;
  int64_t dense_bytes = 0;   ///< all weights of this rank if kept in dense fp16
  int64_t packed_bytes = 0;  ///< the same with packed linears by the size formula
  int64_t device_bytes = 0;  ///< what they take on the device
  int sparse_linears = 0;
  int dense_linears = 0;
};

struct Model {
  ModelConfig config;
  Shard shard;
  int q_heads = 0;          ///< this rank's
  int kv_heads = 0;         ///< this rank's (replicated where there are fewer than ranks)
  int64_t ffn_size = 0;     ///< this rank's
  int64_t vocab_shard = 0;  ///< LM head rows on this rank

  DeviceArray<Half> embedding;           ///< [vocab][embed_size], on every rank
  DeviceArray<Half> positions;           ///< [max_positions + offset][d]; empty with rotary positions
  LinearWeight project_in, project_out;  ///< OPT-350m; m = 0 if absent; on every rank
  std::vector<LayerWeights> layers;
  NormWeights final_norm;
  LinearWeight head;                     ///< [vocab_shard][embed_size]; vocabulary-parallel
  DeviceArray<float> inv_freq;           ///< [head_dim/2]; empty without rotation
  std::vector<DeviceArray<Half>> small;  ///< owns norms and biases
  WeightReport report;
};

/// What to do with the linear weights of a checkpoint.
struct LoadOptions {
  bool dense = false;         ///< keep every linear dense (the baseline): packed ones are decoded
  double min_sparsity = 0.3;  ///< linears with fewer zeros than this stay dense
  bool pack_head = false;     ///< also pack the LM head if sparse enough
  /// Bytes of this rank's weights as dense fp16; may be empty. What it throws stops the loading.
  std::function<void(int64_t done, int64_t total)> progress = {};
};

/// Loads `dir` (Hugging Face layout: dense safetensors or packed) onto `device`, this rank's shares only.
/// Throws `Error` naming file, tensor, what it is and what it should be. A `--tp` the heads do not allow
/// throws `UsageError` naming the legal degrees, before anything is read.
Model load_model(const std::filesystem::path& dir, const ModelConfig& config, Device& device,
                 ThreadPool& pool, Shard shard, const LoadOptions& options);
/// The same from an opened checkpoint, which ranks can share: see Checkpoint.
Model load_model(const Checkpoint& checkpoint, const ModelConfig& config, Device& device, ThreadPool& pool,
                 Shard shard, const LoadOptions& options);

/// A model of random weights (Gaussian, scale 1/sqrt(k); each linear weight zero with probability
/// `sparsity`), for benchmarks without a checkpoint.
Model random_model(const ModelConfig& config, double sparsity, uint64_t seed, Device& device,
                   ThreadPool& pool, Shard shard, const LoadOptions& options);

/// Throws `UsageError` naming the legal degrees if `world` ranks cannot share the model.
void check_tensor_parallel(const ModelConfig& config, int world);

/// Index arrays of one step, on the device.
struct ForwardBatch {
  int n = 0;                            ///< tokens
  const int32_t* token_ids = nullptr;   ///< [n]; negative: see EmbedArgs::newest
  const int32_t* newest_ids = nullptr;  ///< what the step before sampled
  const int32_t* positions = nullptr;   ///< [n]
  const int32_t* slots = nullptr;       ///< [n], see RopeAppendArgs
  SequenceBatch seqs;
  const int32_t* logit_rows = nullptr;  ///< [num_logits]: rows whose next-token logits are wanted
  int num_logits = 0;
};

/// The paged cache of all layers.
struct KvCacheView {
  std::vector<KvLayer> layers;
  int block_size = 16;
};

/// Activation memory of one rank, made once for the largest step.
class Workspace {
 public:
  Workspace(Device& device, const Model& model, int max_tokens, int max_logits);
  static int64_t bytes(const ModelConfig& config, Shard shard, int max_tokens,
                       int max_logits);  ///< what the constructor takes

  int max_tokens, max_logits;
  DeviceArray<Half> h;  ///< [max_tokens][d] residual stream
  DeviceArray<Half> x;  ///< [max_tokens][max(d, embed_size)] input of a linear: normed, or see DeferredNorm
  DeviceArray<Half> delta;          ///< [max_tokens][max(d, embed_size)] output of a block, before it joins h
  DeviceArray<Half> qkv;            ///< [max_tokens][(hq + 2·hkv)·head_dim]
  DeviceArray<Half> attn;           ///< [max_tokens][hq·head_dim]
  DeviceArray<Half> mlp;            ///< [max_tokens][2·f] or [f]
  DeviceArray<Half> gated;          ///< [max_tokens][f]; empty if not gated
  DeviceArray<uint64_t> moments;    ///< [2·layers][moment_words] for kMostDeferringTokens, see DeferredNorm
  DeviceArray<Half> last;           ///< [max_logits][d]
  DeviceArray<Half> head_in;        ///< [max_logits][embed_size]; empty without project_out
  DeviceArray<float> logits_shard;  ///< [max_logits][vocab_shard]; empty with one rank
  DeviceArray<float> logits;        ///< [max_logits][vocab]
};

/// One step: token ids → workspace.logits[0, num_logits), keys and values appended to `kv`. Runs opt.cpp's or
/// llama.cpp's forward.
void forward(Device& device, const Model& model, const ForwardBatch& batch, const KvCacheView& kv,
             Workspace& workspace);

}  // namespace spinfer
