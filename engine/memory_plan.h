// What one rank needs in device memory, and how much KV cache fits beside it. Used before loading (`inspect
// --plan`) and after (Engine::create): the same arithmetic, once with assumed and once with real numbers.
#pragma once

#include <cstdint>
#include <string>

#include "engine/engine.h"
#include "models/model.h"

namespace spinfer {

/// The largest step: what workspaces are made for.
struct StepLimits {
  int max_tokens = 0;  ///< --max-num-batched-tokens, or less where sequences cannot be that long
  int max_seqs = 0;    ///< --max-num-seqs, at most max_tokens
  int max_logits =
      0;  ///< rows of logits: one per sequence, or as many scored prompt tokens as score_logits_bytes allow
  int64_t max_blocks = 0;  ///< KV blocks of one sequence
};

/// By default the CPU's KV cache holds this many sequences of full length, or takes this share of the RAM if
/// that is less.
constexpr int kHostKvSequences = 16;
constexpr int64_t kHostKvShare = 4;  ///< 1/4

/// What one rank may still use.
struct RankBudget {
  std::string device;         ///< "GPU 0", "CPU": for messages
  bool host = false;          ///< RAM, shared by all ranks: `left_bytes` is one rank's share
  int64_t total_bytes = 0;    ///< of the device
  int64_t weights_bytes = 0;  ///< of this rank
  int64_t left_bytes = 0;     ///< for workspace and KV cache, weights already subtracted; may be negative
};

/// Bytes of one rank.
struct MemoryPlan {
  StepLimits limits;
  int64_t max_model_len = 0;
  int64_t weights_bytes = 0;
  int64_t workspace_bytes = 0;
  int64_t kv_block_bytes = 0;
  int64_t kv_blocks = 0;
  int block_size = 0;

  int64_t kv_bytes() const { return kv_blocks * kv_block_bytes; }
  int64_t kv_bytes_per_token() const { return kv_block_bytes / block_size; }
  int64_t kv_tokens() const { return kv_blocks * block_size; }
  int64_t total_bytes() const { return weights_bytes + workspace_bytes + kv_bytes(); }
};

/// Throws `UsageError` naming the flag, its value and the legal range.
void check_engine_options(const EngineOptions& options);

/// The budget of a rank whose weights are loaded on a device that reports `info`.
RankBudget budget_after_loading(const EngineOptions& options, const DeviceInfo& info, std::string device,
                                bool host, int64_t weights_bytes);
/// The budget of a rank on a GPU of `total_bytes` with nothing on it yet; `overhead_bytes` are taken beside
/// weights and what MemoryPlan counts.
RankBudget budget_of_gpu(const EngineOptions& options, int64_t total_bytes, int64_t weights_bytes,
                         int64_t overhead_bytes);

/// Sizes workspace and KV cache within the budget. Without --max-model-len, the model's length is lowered to
/// what the KV cache holds. Throws `Error` naming the term that does not fit, the bytes it needs, the bytes
/// left and the smallest change that would do; `UsageError` if --max-model-len is more than the model's
/// positions.
MemoryPlan plan_memory(const ModelConfig& config, const EngineOptions& options, const RankBudget& budget);

}  // namespace spinfer
