// The engine: requests in, tokens out. Owns devices, models, KV cache, scheduler and ranks.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/request.h"
#include "kernels/backend.h"
#include "models/model.h"
#include "tokenizer/tokenizer.h"

namespace spinfer {

/// For tests: step `step`, counted from 1 (0 = none), fails as if a device had; with `rank` ≥ 0 that rank
/// fails in it, or never comes back.
struct InjectedFault {
  int64_t step = 0;
  int rank = -1;
  bool hang = false;
};

constexpr double kLowestGpuMemoryUtilization = 0.01;

struct EngineOptions {
  std::filesystem::path model;  ///< Hugging Face or packed directory; with `random_weights`, a config.json
  std::optional<double> random_weights;  ///< sparsity of random weights instead of a checkpoint's
  std::string device = "auto";           ///< auto, cpu, cuda
  int tensor_parallel = 1;
  int threads = 0;  ///< CPU threads of all ranks together; 0 = all cores
  bool deterministic = false;
  bool dense = false;          ///< run every linear dense: the baseline
  std::optional<bool> graphs;  ///< record decode steps and queue them as a whole; default: on GPUs
  std::optional<bool>
      run_ahead;  ///< queue the next step before the tokens of this one are read; default: on GPUs
  double min_sparsity = 0.3;
  uint64_t seed = 0;
  int max_num_seqs = 256;
  int max_num_batched_tokens = 8192;
  /// Memory for the logits of scored prompts, beyond one row per sequence: more rows a step only save steps.
  int64_t score_logits_bytes = int64_t{128} << 20;
  int64_t max_model_len = 0;            ///< 0: what the model allows
  double gpu_memory_utilization = 0.9;  ///< kLowestGpuMemoryUtilization…1
  int64_t kv_cache_bytes =
      0;  ///< 0: from what is left (GPU), or as many blocks as max_num_seqs needs up to a cap (CPU)
  int64_t num_kv_blocks = 0;  ///< overrides kv_cache_bytes
  int block_size = 16;
  bool prefix_caching = true;
  /// Several ranks: a step that takes longer counts as failed; 0 = no limit. Default: 30 on GPUs, no limit on
  /// the CPU.
  std::optional<double> watchdog_seconds;
  std::function<void(int64_t done, int64_t total)> load_progress;  ///< bytes, summed over ranks
  InjectedFault fault;
  const Backend* backend = nullptr;  ///< instead of the one `device` names: for tests

  /// Where config.json and, if there are any, the tokenizer's files lie.
  std::filesystem::path directory() const;
};

/// One rank's part of a MemoryReport.
struct RankMemory {
  int64_t weights_bytes = 0;
  int64_t kv_bytes = 0;
  int64_t workspace_bytes = 0;  ///< with scratch and graphs
  int64_t peak_bytes = 0;
  int64_t driver_bytes = 0;
};

/// Bytes of the whole engine (sums over ranks unless said).
struct MemoryReport {
  std::vector<RankMemory> ranks;
  int64_t weights_dense_bytes = 0;   ///< all weights, were they dense
  int64_t weights_packed_bytes = 0;  ///< by the size formula
  int64_t weights_bytes = 0;         ///< on the devices
  int64_t step_weights_bytes = 0;  ///< of these, what a decode step reads: embedding rows not gathered apart
  int64_t kv_bytes = 0;
  int64_t workspace_bytes = 0;
  int64_t scratch_bytes = 0;  ///< workspaces of ops and libraries, beside the above
  int64_t graph_bytes = 0;    ///< recorded decode steps
  int64_t peak_bytes = 0;     ///< largest total of all these the devices held
  int64_t driver_bytes = 0;   ///< GPUs: what the driver says is in use now, whoever uses it
  int64_t parameters = 0;
  double sparsity = 0;  ///< of the linears
  int sparse_linears = 0;
  int dense_linears = 0;
};

/// Counters since the start, and the state after the last step.
struct EngineStats {
  double load_seconds = 0;  ///< making the weights resident
  int running = 0;
  int waiting = 0;
  int64_t kv_blocks_free = 0;
  int64_t kv_blocks_used = 0;
  int64_t kv_blocks_cached = 0;
  int64_t preemptions = 0;
  int64_t prompt_tokens = 0;  ///< of requests added
  int64_t generated_tokens = 0;
  int64_t prefix_queried_tokens = 0;  ///< prompt tokens looked up in the prefix cache
  int64_t prefix_hit_tokens = 0;      ///< and found there
};

/// Times of one step, for benchmarks.
struct StepStats {
  int prefill_tokens = 0;
  int decode_tokens = 0;
  double seconds = 0;
  /// For which the device had nothing to do before it, though there were requests: by the device's own clock
  /// where the step was queued behind another, else by the host's.
  double host_gap_seconds = 0;
};

class Engine {
 public:
  /// Loads everything. Throws `Error`/`UsageError` with one line.
  static std::unique_ptr<Engine> create(const EngineOptions& options);
  ~Engine();

  /// Runs steps of all sizes, so that none is tuned, recorded or allocated for while users wait: seconds on a
  /// GPU, nothing elsewhere. Before the first request. Ends early where `go_on` says so.
  void warm_up(const std::function<bool()>& go_on = {});

  /// Queues a request. Throws `Error` where it can never run (too long for the model or the cache: with the
  /// numbers; id outside the vocabulary; a parameter out of range). `prompt` must not be empty.
  RequestId add_request(std::vector<int32_t> prompt, const SamplingParams& params);
  /// Ends a request at the next step, which frees its blocks and reports FinishReason::cancelled. Unknown ids
  /// are ignored.
  void cancel(RequestId id);
  bool has_work() const;
  /// Schedule, collect, postprocess. Returns what changed; empty if there was nothing to do. When a device
  /// fails, all requests end with FinishReason::error and the cause, and `failure` says it from then on.
  std::vector<RequestUpdate> step();
  /// Why the engine stopped working; empty while it works. It takes no more requests then.
  const std::string& failure() const;
  /// From now on `step` shows the logits [vocab] that predict each scored prompt token (see
  /// SamplingParams::prompt_logprobs), `position` ≥ 1 being the token's. For comparing models.
  using PromptLogits = std::function<void(RequestId id, int64_t position, std::span<const float> logits)>;
  void observe_prompt_logits(PromptLogits observer);

  const ModelConfig& config() const;
  const Tokenizer* tokenizer() const;  ///< null where the directory has no tokenizer files
  int64_t max_model_len() const;
  int ranks() const;
  const Backend& backend() const;
  MemoryReport memory() const;
  EngineStats stats() const;
  StepStats last_step() const;
  RequestTimes times(RequestId id) const;  ///< of a request that ended in the last step or still runs
  void check_integrity() const;            ///< throws `Error` if the KV cache's books do not balance
  /// For measuring what ops cost: see Backend::leave_out. Tokens mean nothing while `kinds` is not 0.
  void leave_out(uint32_t kinds);
  /// See Backend::read_gbps; of one device.
  double read_gbps() const;

 private:
  struct State;
  explicit Engine(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace spinfer
