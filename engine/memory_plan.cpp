#include "engine/memory_plan.h"

#include <algorithm>
#include <limits>

#include "engine/human_bytes.h"
#include "engine/runner.h"
#include "kernels/check.h"

namespace spinfer {
namespace {

template <class T>
void check_flag(const char* flag, T value, T low, T high) {
  if (value >= low && value <= high) return;
  throw UsageError(fmt::format("{} {}: must be {} to {}", flag, value, low, high));
}

int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

int64_t longest_sequence(const ModelConfig& config, const EngineOptions& options) {
  if (options.max_model_len == 0) return config.max_positions;
  if (options.max_model_len > config.max_positions) {
    throw UsageError(fmt::format("--max-model-len {}: must be 1 to {}, the positions the model has",
                                 options.max_model_len, config.max_positions));
  }
  return options.max_model_len;
}

StepLimits step_limits(const ModelConfig& config, const EngineOptions& options, int64_t max_model_len) {
  StepLimits limits;
  // max_num_seqs and max_model_len are below 2^31 each, so the product does not overflow.
  limits.max_tokens =
      int(std::min<int64_t>(options.max_num_batched_tokens, options.max_num_seqs * max_model_len));
  limits.max_seqs = std::min(options.max_num_seqs, limits.max_tokens);
  const int64_t rows = options.score_logits_bytes / (int64_t{sizeof(float)} * config.vocab_size);
  limits.max_logits = int(std::max<int64_t>(limits.max_seqs, std::min<int64_t>(limits.max_tokens, rows)));
  limits.max_blocks = divide_up(max_model_len, options.block_size);
  return limits;
}

int64_t workspace_bytes(const ModelConfig& config, const EngineOptions& options, const StepLimits& limits) {
  const Shard shard{0, options.tensor_parallel};
  return Workspace::bytes(config, shard, limits.max_tokens, limits.max_logits) + Runner::index_bytes(limits);
}

/// The largest --max-num-batched-tokens whose workspace takes at most `bytes`; 0 if none does.
int fitting_batched_tokens(const ModelConfig& config, EngineOptions options, int64_t max_model_len,
                           int64_t bytes) {
  int low = 0, high = options.max_num_batched_tokens;
  while (low < high) {
    options.max_num_batched_tokens = low + (high - low + 1) / 2;
    const int64_t needed = workspace_bytes(config, options, step_limits(config, options, max_model_len));
    if (needed <= bytes) {
      low = options.max_num_batched_tokens;
    } else {
      high = options.max_num_batched_tokens - 1;
    }
  }
  return low;
}

void check_workspace(const ModelConfig& config, const EngineOptions& options, const RankBudget& budget,
                     const MemoryPlan& plan) {
  if (plan.workspace_bytes + plan.kv_block_bytes <= budget.left_bytes) return;
  const int tokens = fitting_batched_tokens(config, options, plan.limits.max_blocks * options.block_size,
                                            budget.left_bytes - plan.kv_block_bytes);
  const std::string left = human_bytes(std::max<int64_t>(budget.left_bytes, 0));
  if (tokens > 0) {
    fail(
        "{}: the workspace for steps of {} tokens needs {}, {} are left beside {} of weights; lower "
        "--max-num-batched-tokens to {}",
        budget.device, plan.limits.max_tokens, human_bytes(plan.workspace_bytes), left,
        human_bytes(budget.weights_bytes), tokens);
  }
  fail("{}: {} of weights leave {} of {}, too little for any workspace; {}", budget.device,
       human_bytes(budget.weights_bytes), left, human_bytes(budget.total_bytes),
       budget.host ? "use a machine with more memory, or a sparser or smaller model"
                   : "raise --gpu-memory-utilization or --tp, or use a sparser or smaller model");
}

/// How many blocks the cache gets; `left` bytes are there for it.
int64_t choose_blocks(const EngineOptions& options, const RankBudget& budget, const MemoryPlan& plan,
                      int64_t left) {
  const int64_t most = std::numeric_limits<int32_t>::max() / options.block_size;  // slots are 32-bit
  const int64_t fitting = left / plan.kv_block_bytes;
  if (options.num_kv_blocks > 0) {
    check(options.num_kv_blocks <= fitting,
          "{}: a KV cache of {} blocks needs {}, {} are left; lower --num-kv-blocks to {}", budget.device,
          options.num_kv_blocks, human_bytes(options.num_kv_blocks * plan.kv_block_bytes), human_bytes(left),
          fitting);
    return options.num_kv_blocks;
  }
  if (options.kv_cache_bytes > 0) {
    check(options.kv_cache_bytes <= left,
          "{}: a KV cache of {} was asked for, {} are left; lower --kv-cache-memory to {}", budget.device,
          human_bytes(options.kv_cache_bytes), human_bytes(left), left);
    const int64_t blocks = options.kv_cache_bytes / plan.kv_block_bytes;
    check(blocks >= 1, "--kv-cache-memory {}: one block of {} tokens needs {} bytes", options.kv_cache_bytes,
          options.block_size, plan.kv_block_bytes);
    return std::min(blocks, most);
  }
  // A step's tokens are the most sequences can use, however many are allowed: no cache needs more blocks.
  const int64_t useful = std::min<int64_t>(most, plan.limits.max_blocks * plan.limits.max_seqs);
  if (!budget.host) return std::min(fitting, std::max<int64_t>(useful, plan.limits.max_blocks));
  const int64_t wanted = plan.limits.max_blocks * std::min(options.max_num_seqs, kHostKvSequences);
  const int64_t share = budget.total_bytes / kHostKvShare / options.tensor_parallel / plan.kv_block_bytes;
  return std::min({fitting, most, wanted, std::max<int64_t>(share, 1)});
}

}  // namespace

void check_engine_options(const EngineOptions& o) {
  constexpr int kMost = 1 << 20;
  check_flag("--tp", o.tensor_parallel, 1, 64);
  check_flag("--threads", o.threads, 0, 4096);
  check_flag("--max-num-seqs", o.max_num_seqs, 1, kMost);
  check_flag("--max-num-batched-tokens", o.max_num_batched_tokens, 1, kMost);
  check_flag<int64_t>("--max-model-len", o.max_model_len, 0, int64_t{1} << 30);
  check_flag("--block-size", o.block_size, 1, 256);
  check_flag<int64_t>("--num-kv-blocks", o.num_kv_blocks, 0,
                      std::numeric_limits<int32_t>::max() / o.block_size);
  check_flag<int64_t>("--kv-cache-memory", o.kv_cache_bytes, 0, int64_t{1} << 50);
  check_flag("--gpu-memory-utilization", o.gpu_memory_utilization, kLowestGpuMemoryUtilization, 1.0);
  check_flag("--min-sparsity", o.min_sparsity, 0.0, 1.0);
  if (o.random_weights) check_flag("--sparsity", *o.random_weights, 0.0, 1.0);
}

RankBudget budget_after_loading(const EngineOptions& options, const DeviceInfo& info, std::string device,
                                bool host, int64_t weights_bytes) {
  RankBudget budget{.device = std::move(device),
                    .host = host,
                    .total_bytes = info.total_bytes,
                    .weights_bytes = weights_bytes};
  const int64_t used = info.total_bytes - info.free_bytes;
  budget.left_bytes = host ? info.free_bytes / options.tensor_parallel
                           : int64_t(options.gpu_memory_utilization * double(info.total_bytes)) - used;
  return budget;
}

RankBudget budget_of_gpu(const EngineOptions& options, int64_t total_bytes, int64_t weights_bytes,
                         int64_t overhead_bytes) {
  const DeviceInfo info{.name = {},
                        .total_bytes = total_bytes,
                        .free_bytes = total_bytes - overhead_bytes - weights_bytes,
                        .threads = 0};
  return budget_after_loading(options, info, "GPU", false, weights_bytes);
}

MemoryPlan plan_memory(const ModelConfig& config, const EngineOptions& options, const RankBudget& budget) {
  MemoryPlan plan;
  plan.block_size = options.block_size;
  plan.weights_bytes = budget.weights_bytes;
  plan.max_model_len = longest_sequence(config, options);
  plan.limits = step_limits(config, options, plan.max_model_len);
  plan.kv_block_bytes = Runner::kv_block_bytes(config, options.tensor_parallel, options.block_size);
  plan.workspace_bytes = workspace_bytes(config, options, plan.limits);
  check_workspace(config, options, budget, plan);

  const int64_t left = budget.left_bytes - plan.workspace_bytes;
  plan.kv_blocks = choose_blocks(options, budget, plan, left);
  if (plan.kv_tokens() >= plan.max_model_len) return plan;
  if (options.max_model_len == 0) {
    plan.max_model_len = plan.kv_tokens();
    return plan;
  }
  const int64_t needed = plan.limits.max_blocks * plan.kv_block_bytes;
  const char* source = options.num_kv_blocks > 0    ? "--num-kv-blocks gives"
                       : options.kv_cache_bytes > 0 ? "--kv-cache-memory gives"
                                                    : "left are";
  fail("{}: the KV cache of 1 request of {} tokens needs {}, {} {}; lower --max-model-len to {}",
       budget.device, plan.max_model_len, human_bytes(needed), source, human_bytes(plan.kv_bytes()),
       plan.kv_tokens());
}

}  // namespace spinfer
