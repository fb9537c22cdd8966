#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>

#include "engine/batch.h"
#include "engine/kv_cache.h"
#include "engine/memory_plan.h"
#include "engine/request_output.h"
#include "engine/scheduler.h"
#include "engine/tensor_parallel.h"
#include "engine/tokenizer_hints.h"
#include "engine/warm_up.h"
#include "kernels/check.h"
#include "kernels/thread_pool.h"
#include "models/checkpoint.h"
#include "models/checkpoint_tools.h"

namespace spinfer {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Seed of a request that names none.
uint64_t draw_seed(uint64_t engine_seed, RequestId id) {
  return random_bits(engine_seed, id + 1);
}

std::optional<Tokenizer> load_tokenizer(const EngineOptions& options, const ModelConfig& config) {
  const std::filesystem::path directory = options.directory();
  if (!Tokenizer::present(directory)) return std::nullopt;
  return Tokenizer::load(directory, tokenizer_hints(config));
}

/// Adds up the progress of ranks that load at the same time, and stops them all with the error of the first
/// that fails.
class LoadProgress {
 public:
  LoadProgress(const std::function<void(int64_t, int64_t)>& report, int world)
      : report_(report), done_(size_t(world)), total_(size_t(world)) {}

  std::function<void(int64_t, int64_t)> of_rank(int rank) {
    if (!report_ && done_.size() == 1) return {};
    return [this, rank](int64_t done, int64_t total) {
      const std::lock_guard lock(mutex_);
      if (error_) std::rethrow_exception(error_);
      done_[size_t(rank)] = done;
      total_[size_t(rank)] = total;
      if (!report_) return;
      try {
        report_(std::accumulate(done_.begin(), done_.end(), int64_t{0}),
                std::accumulate(total_.begin(), total_.end(), int64_t{0}));
      } catch (...) {
        error_ = std::current_exception();
        throw;
      }
    };
  }
  /// A rank ends its loading with this error.
  void fail(std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::move(error);
  }

 private:
  const std::function<void(int64_t, int64_t)>& report_;
  std::mutex mutex_;
  std::vector<int64_t> done_, total_;
  std::exception_ptr error_;
};

void load_ranks(TensorParallel& ranks, const EngineOptions& options, const ModelConfig& config) {
  const int cores = options.threads > 0 ? options.threads : int(std::thread::hardware_concurrency());
  const int threads = std::max(1, cores / ranks.world());
  LoadProgress progress(options.load_progress, ranks.world());
  std::optional<ThreadPool> all_cores;
  std::optional<Checkpoint> checkpoint;  // read and checked once, not by every rank
  if (!options.random_weights) checkpoint.emplace(options.model, all_cores.emplace(cores));
  ranks.on_all([&](Runner& runner) {
    const Shard shard = runner.shard();
    const LoadOptions load{.dense = options.dense,
                           .min_sparsity = options.min_sparsity,
                           .pack_head = false,
                           .progress = progress.of_rank(shard.rank)};
    try {
      ThreadPool pool(threads);
      runner.set_model(options.random_weights ? random_model(config, *options.random_weights, options.seed,
                                                             runner.device(), pool, shard, load)
                                              : load_model(Checkpoint(*checkpoint, pool), config,
                                                           runner.device(), pool, shard, load));
    } catch (...) {
      progress.fail(std::current_exception());
      throw;
    }
  });
}

/// Random weights are made in memory: refused before the first is drawn. (A checkpoint's are mapped.)
void check_random_weights_fit(TensorParallel& ranks, const EngineOptions& options, const ModelConfig& config,
                              bool host) {
  const Shard share = host ? Shard{} : Shard{0, options.tensor_parallel};  // of one device's memory
  const WeightPlan plan = plan_weights(config, *options.random_weights, share, options.min_sparsity);
  const int64_t needed = options.dense ? plan.dense_bytes : plan.packed_bytes;
  const int64_t free = ranks.rank(0).device().info().free_bytes;
  check(needed <= free, "{}: weights of {} bytes do not fit{}: {} bytes of memory are free{}{}",
        options.model.string(), needed, host ? "" : " a GPU", free,
        !options.dense && plan.packed_bytes < plan.dense_bytes ? "" : "; more zeros need less (--sparsity)",
        host ? "" : "; --tp shares them among GPUs");
}

/// The plan all ranks can keep: the one with the fewest KV blocks.
MemoryPlan plan_ranks(TensorParallel& ranks, const EngineOptions& options, const ModelConfig& config,
                      bool host) {
  std::optional<MemoryPlan> least;
  for (int r = 0; r < ranks.world(); ++r) {
    Runner& runner = ranks.rank(r);
    const RankBudget budget =
        budget_after_loading(options, runner.device().info(), host ? "CPU" : fmt::format("GPU {}", r), host,
                             runner.model().report.device_bytes);
    const MemoryPlan plan = plan_memory(config, options, budget);
    if (!least || plan.kv_blocks < least->kv_blocks) least = plan;
  }
  return *least;
}

/// Bytes of weights that a decode step reads: a row or so of an embedding table is nothing, a tied head is
/// all of its rows.
int64_t step_weights_bytes(const Model& model) {
  const bool head_in_table = model.config.tied_head && model.head.view.is_dense();
  const int64_t head = head_in_table ? model.head.view.m * model.head.view.k : 0;
  return model.report.device_bytes -
         int64_t{sizeof(Half)} * (model.embedding.size() + model.positions.size() - head);
}

struct Request {
  RequestOutput output;
  Clock::time_point arrived;
  RequestTimes times;
};

/// A step that is queued.
struct Step {
  Clock::time_point start;
  int prefill_tokens = 0;
  int decode_tokens = 0;
  bool behind_another = false;  ///< when it was queued
  double host_gap = 0;          ///< otherwise
  std::shared_ptr<const Batch> batch;
};

/// What a step's fault does to the rank it is for.
void inject(const InjectedFault& fault) {
  if (fault.hang) std::this_thread::sleep_for(std::chrono::hours(1));
  fail("injected fault in step {} of rank {}", fault.step, fault.rank);
}

}  // namespace

std::filesystem::path EngineOptions::directory() const {
  if (!random_weights) return model;
  return model.has_parent_path() ? model.parent_path() : ".";
}

struct Engine::State {
  EngineOptions options;
  const Backend& backend;
  ModelConfig config;
  std::optional<Tokenizer> tokenizer;
  std::vector<int32_t> eos_ids;
  std::unique_ptr<TensorParallel> ranks;
  MemoryPlan plan;
  KvCache kv;
  Scheduler scheduler;

  bool run_ahead;
  std::deque<Step> in_flight;  // queued and not collected: at most kStepsInFlight
  Clock::time_point last_collected;
  double load_seconds = 0;
  std::optional<Clock::time_point> device_idle_since;  // nothing is queued, though there are requests

  std::map<RequestId, Request> requests;    // waiting and running, as the scheduler's sequences
  std::vector<RequestId> cancelled;         // to be ended by the next step
  std::vector<RequestUpdate> updates;       // of the current step
  std::map<RequestId, RequestTimes> ended;  // by the last step
  std::string failure;
  RequestId last_id = 0;
  int64_t prompt_tokens = 0;
  int64_t generated_tokens = 0;
  int64_t steps = 0;
  StepStats last_step;
  PromptLogits prompt_logits;

  State(const EngineOptions& options, const Backend& backend, ModelConfig config,
        std::optional<Tokenizer> tokenizer, std::unique_ptr<TensorParallel> ranks, const MemoryPlan& plan)
      : options(options),
        backend(backend),
        config(std::move(config)),
        tokenizer(std::move(tokenizer)),
        ranks(std::move(ranks)),
        plan(plan),
        kv(plan.kv_blocks, plan.block_size, options.prefix_caching),
        scheduler({.max_num_seqs = plan.limits.max_seqs,
                   .max_num_batched_tokens = plan.limits.max_tokens,
                   .max_logits = plan.limits.max_logits},
                  kv) {
    run_ahead = options.run_ahead.value_or(!backend.host);
    if (run_ahead) this->ranks->on_all([](Runner& runner) { runner.feed_tokens_back(); });
    eos_ids = this->config.eos_ids;
    if (this->tokenizer && eos_ids.empty()) eos_ids = this->tokenizer->eos_ids();
  }

  void check_request(const std::vector<int32_t>& prompt, const SamplingParams& params) const;
  void schedule();
  bool queue_step();
  std::optional<StepResult> collect();
  std::vector<RequestUpdate> postprocess(const std::optional<StepResult>& result);
  void add_scores(const Batch& batch, const StepResult& result);
  void accept_token(const Batch& batch, const StepResult& result, size_t row);
  void fail_all();
  void on_all(std::function<void(Runner&)> body);
  void close(RequestId id);
};

std::vector<RequestUpdate> Engine::step() {
  state_->schedule();
  const std::optional<StepResult> result = state_->collect();
  return state_->postprocess(result);
}

/// Queues the next step, and where allowed the one after it: the device works on that while the host reads
/// this one's tokens.
void Engine::State::schedule() {
  updates.clear();
  ended.clear();
  for (const RequestId id : std::exchange(cancelled, {})) {
    const auto request = requests.find(id);
    if (request == requests.end()) continue;
    request->second.output.end(FinishReason::cancelled);
    close(id);
  }
  try {
    if (in_flight.empty() && !queue_step()) return;
    if (run_ahead && scheduler.may_run_ahead()) queue_step();
  } catch (const std::exception& error) {
    failure = error.what();
  }
}

/// False if there was nothing to do.
bool Engine::State::queue_step() {
  Step step;
  step.start = Clock::now();
  const Decision decision = scheduler.schedule();
  step.prefill_tokens = decision.prefill_tokens;
  step.decode_tokens = decision.decode_tokens;
  step.batch = std::make_shared<const Batch>(make_batch(decision, kv));
  if (step.batch->tokens() == 0) return false;
  for (const ScheduledTokens& work : decision.work) {
    Request& request = requests.at(work.seq->id);
    if (request.times.first_scheduled == 0) request.times.first_scheduled = seconds_since(request.arrived);
  }
  const InjectedFault fault = ++steps == options.fault.step ? options.fault : InjectedFault{};
  if (fault.step > 0 && fault.rank < 0) fail("injected fault in step {}", steps);
  step.behind_another = !in_flight.empty();
  if (const auto idle_since = std::exchange(device_idle_since, {}))
    step.host_gap = seconds_since(*idle_since);
  on_all([batch = step.batch, fault](Runner& runner) {
    if (fault.step > 0 && fault.rank == runner.shard().rank) inject(fault);
    runner.submit(*batch);
  });
  scheduler.complete(decision);
  const std::vector<RequestId>& samples = step.batch->sample_ids;
  for (size_t row = 0; row < samples.size(); ++row) scheduler.append_pending(samples[row], int32_t(row));
  in_flight.push_back(std::move(step));
  return true;
}

/// With the watchdog: `body` owns what it uses.
void Engine::State::on_all(std::function<void(Runner&)> body) {
  constexpr double kOnGpus = 30;
  ranks->on_all(std::move(body), options.watchdog_seconds.value_or(backend.host ? 0 : kOnGpus));
}

/// The results of the oldest queued step; none if a device failed.
std::optional<StepResult> Engine::State::collect() {
  const auto result = std::make_shared<StepResult>();
  try {
    if (failure.empty() && !in_flight.empty()) {
      on_all([result](Runner& runner) {
        StepResult mine = runner.collect();
        if (runner.shard().rank == 0) *result = std::move(mine);
      });
      if (in_flight.size() == 1) device_idle_since = Clock::now();
    }
  } catch (const std::exception& error) {
    failure = error.what();
  }
  if (!failure.empty()) return std::nullopt;
  return std::move(*result);
}

std::vector<RequestUpdate> Engine::State::postprocess(const std::optional<StepResult>& result) {
  last_step = {};
  if (!result) {
    fail_all();
  } else if (!in_flight.empty()) {
    const Step step = std::move(in_flight.front());
    in_flight.pop_front();
    add_scores(*step.batch, *result);
    for (size_t row = 0; row < step.batch->sample_ids.size(); ++row) accept_token(*step.batch, *result, row);
    last_step = {.prefill_tokens = step.prefill_tokens,
                 .decode_tokens = step.decode_tokens,
                 .seconds = seconds_since(std::max(step.start, last_collected)),
                 .host_gap_seconds = step.behind_another ? result->idle_seconds : step.host_gap};
    last_collected = Clock::now();
    // Nobody wants what was queued for requests that have ended since.
    while (requests.empty() && !in_flight.empty() && collect()) in_flight.pop_front();
  }
  if (requests.empty()) device_idle_since.reset();  // it waits for users now, not for us
  return std::exchange(updates, {});
}

void Engine::State::fail_all() {
  in_flight.clear();
  while (!requests.empty()) {
    const auto& [id, request] = *requests.begin();
    requests.begin()->second.output.end(FinishReason::error, failure);
    close(id);
  }
}

void Engine::State::add_scores(const Batch& batch, const StepResult& result) {
  for (size_t i = 0; i < batch.scores.size(); ++i) {
    const auto [id, position] = batch.scores[i];
    const auto request = requests.find(id);
    if (request == requests.end()) continue;
    request->second.output.add_score(position, result.score_logprobs[i]);
    if (prompt_logits) {
      const auto vocab = size_t(config.vocab_size);
      prompt_logits(id, position, std::span(result.score_logits).subspan(i * vocab, vocab));
    }
  }
}

void Engine::State::accept_token(const Batch& batch, const StepResult& result, size_t row) {
  const RequestId id = batch.sample_ids[row];
  const auto entry = requests.find(id);
  if (entry == requests.end()) return;  // it ended after this step was queued
  Request& request = entry->second;
  if (result.ids[row] == kNoToken) {
    request.output.end(FinishReason::error,
                       "the logits hold NaN or infinity: the model's weights are damaged, or its activations "
                       "exceed the range of fp16");
    return close(id);
  }
  const int64_t listed = std::min<int64_t>(batch.top, config.vocab_size);
  TokenLogprob token{.id = result.ids[row], .logprob = 0, .top = {}};
  if (row < size_t(batch.logprob_rows)) {
    token.logprob = result.logprobs[row];
    const int64_t wanted = std::min<int64_t>(scheduler.find(id)->params.logprobs, listed);
    for (int64_t i = int64_t(row) * listed; i < int64_t(row) * listed + wanted; ++i) {
      token.top.push_back({result.top_ids[size_t(i)], result.top_logprobs[size_t(i)]});
    }
  }
  if (!request.output.prompt_finished()) {
    request.output.finish_prompt(token.top);
    request.times.first_token = seconds_since(request.arrived);
  }
  if (!request.output.finished()) {
    request.output.add_token(std::move(token));
    ++generated_tokens;
  }
  if (request.output.finished()) return close(id);
  scheduler.resolve(id, result.ids[row]);
  updates.push_back(request.output.take_update());
}

/// Reports the end of a request, frees its blocks and forgets it.
void Engine::State::close(RequestId id) {
  Request& request = requests.at(id);
  request.times.finished = seconds_since(request.arrived);
  ended[id] = request.times;
  updates.push_back(request.output.take_update());
  updates.back().cached_prompt_tokens = scheduler.find(id)->cached_prompt;
  scheduler.remove(id);
  requests.erase(id);
}

std::unique_ptr<Engine> Engine::create(const EngineOptions& options) {
  check_engine_options(options);
  const Backend& backend = options.backend ? *options.backend : select_backend(options.device);
  ModelConfig config = load_config(options.model);
  check(config.vocab_size <= backend.most_vocab,
        "{}: a vocabulary of {}: the {} backend samples from at most {}", options.model.string(),
        config.vocab_size, backend.name, backend.most_vocab);
  check_tensor_parallel(config, options.tensor_parallel);
  std::optional<Tokenizer> tokenizer = load_tokenizer(options, config);
  auto ranks = std::make_unique<TensorParallel>(
      backend, options.tensor_parallel,
      DeviceOptions{.ordinal = 0, .threads = options.threads, .deterministic = options.deterministic});
  if (options.random_weights) check_random_weights_fit(*ranks, options, config, backend.host);
  const auto load_start = Clock::now();
  load_ranks(*ranks, options, config);
  const double load_seconds = seconds_since(load_start);
  const MemoryPlan plan = plan_ranks(*ranks, options, config, backend.host);
  const bool graphs = options.graphs.value_or(!backend.host);
  ranks->on_all([&](Runner& runner) {
    runner.allocate(plan.limits, plan.kv_blocks, plan.block_size);
    if (graphs) runner.use_graphs();
  });
  auto state = std::make_unique<State>(options, backend, std::move(config), std::move(tokenizer),
                                       std::move(ranks), plan);
  state->load_seconds = load_seconds;
  return std::unique_ptr<Engine>(new Engine(std::move(state)));
}

void Engine::warm_up(const std::function<bool()>& go_on) {
  if (backend().host) return;
  const MemoryPlan& plan = state_->plan;
  const auto run = [&](const std::shared_ptr<const Batch>& batch) {
    state_->on_all([batch](Runner& runner) { runner.submit(*batch); });
    state_->on_all([](Runner& runner) { runner.collect(); });
  };
  for (const WarmUpStep& step : warm_up_steps(plan.limits, plan.max_model_len, plan.block_size)) {
    if (go_on && !go_on()) return;
    const auto batch = std::make_shared<const Batch>(warm_up_batch(step, plan.block_size));
    run(batch);
    if (is_decode(*batch)) run(batch);  // now it is recorded
  }
}

Engine::Engine(std::unique_ptr<State> state) : state_(std::move(state)) {}
Engine::~Engine() = default;

void Engine::State::check_request(const std::vector<int32_t>& prompt, const SamplingParams& params) const {
  check(failure.empty(), "the engine has stopped: {}", failure);
  check_sampling_params(params);
  check(!prompt.empty(), "the prompt has no tokens");
  for (const int32_t token : prompt) {
    check(token >= 0 && token < config.vocab_size, "token id {}: must be 0 to {}", token,
          config.vocab_size - 1);
  }
  for (const auto [id, bias] : params.logit_bias)
    check(id < config.vocab_size, "logit_bias of token {}: must be 0 to {}", id, config.vocab_size - 1);
  check(params.stop.empty() || tokenizer, "stop strings need a tokenizer, and {} has no tokenizer files",
        options.model.string());
  const int64_t length = int64_t(prompt.size()) + params.max_tokens;
  if (length <= plan.max_model_len) return;
  const bool kv_bound = options.max_model_len == 0 && plan.max_model_len < config.max_positions;
  fail("a prompt of {} tokens and {} new ones are {} tokens: the limit is {} ({})", prompt.size(),
       params.max_tokens, length, plan.max_model_len,
       kv_bound ? fmt::format("what the KV cache of {} blocks of {} tokens holds; the model has {} positions",
                              plan.kv_blocks, plan.block_size, config.max_positions)
       : options.max_model_len > 0 ? "--max-model-len"
                                   : "the model's positions");
}

RequestId Engine::add_request(std::vector<int32_t> prompt, const SamplingParams& params) {
  State& s = *state_;
  s.check_request(prompt, params);
  const RequestId id = s.last_id + 1;
  RequestOutput output(id, prompt, params, tokenizer(), s.eos_ids);
  const int64_t prompt_tokens = int64_t(prompt.size());
  s.scheduler.add(Sequence(id, std::move(prompt), params, draw_seed(s.options.seed, id)));
  s.requests.emplace(id, Request{std::move(output), Clock::now(), {}});
  s.prompt_tokens += prompt_tokens;
  return s.last_id = id;
}

void Engine::cancel(RequestId id) {
  state_->cancelled.push_back(id);
}
bool Engine::has_work() const {
  return !state_->requests.empty();
}
const std::string& Engine::failure() const {
  return state_->failure;
}
const ModelConfig& Engine::config() const {
  return state_->config;
}
const Tokenizer* Engine::tokenizer() const {
  return state_->tokenizer ? &*state_->tokenizer : nullptr;
}
int64_t Engine::max_model_len() const {
  return state_->plan.max_model_len;
}
int Engine::ranks() const {
  return state_->ranks->world();
}
const Backend& Engine::backend() const {
  return state_->backend;
}
StepStats Engine::last_step() const {
  return state_->last_step;
}
void Engine::observe_prompt_logits(PromptLogits observer) {
  state_->ranks->rank(0).keep_score_logits(bool(observer));
  state_->prompt_logits = std::move(observer);
}
void Engine::check_integrity() const {
  state_->kv.check_integrity();
}

void Engine::leave_out(uint32_t kinds) {
  state_->ranks->on_all([&](Runner& runner) { runner.leave_out(kinds); });
}

double Engine::read_gbps() const {
  Device& device = state_->ranks->rank(0).device();
  return device.ops().read_gbps(device.context());
}

MemoryReport Engine::memory() const {
  MemoryReport memory;
  int64_t weights = 0, nonzeros = 0;
  for (int r = 0; r < ranks(); ++r) {
    Runner& runner = state_->ranks->rank(r);
    const WeightReport& report = runner.model().report;
    weights += report.linear_weights;
    nonzeros += report.linear_nonzeros;
    memory.weights_dense_bytes += report.dense_bytes;
    memory.weights_packed_bytes += report.packed_bytes;
    memory.step_weights_bytes += step_weights_bytes(runner.model());
    const DeviceInfo info = runner.device().info();
    const int64_t beside = info.scratch_bytes + info.graph_bytes;
    const int64_t workspace = runner.device().bytes(MemoryUse::workspace);
    RankMemory& rank = memory.ranks.emplace_back();
    rank.weights_bytes = report.device_bytes;
    rank.kv_bytes = runner.device().bytes(MemoryUse::kv_cache);
    rank.workspace_bytes = workspace + beside;
    rank.peak_bytes = runner.device().peak_bytes() + beside;
    if (!backend().host) rank.driver_bytes = info.total_bytes - info.free_bytes;
    memory.weights_bytes += rank.weights_bytes;
    memory.kv_bytes += rank.kv_bytes;
    memory.workspace_bytes += workspace;
    memory.scratch_bytes += info.scratch_bytes;
    memory.graph_bytes += info.graph_bytes;
    memory.peak_bytes += rank.peak_bytes;
    memory.driver_bytes += rank.driver_bytes;
  }
  const WeightReport& first = state_->ranks->rank(0).model().report;
  memory.parameters = first.parameters;
  memory.sparse_linears = first.sparse_linears;
  memory.dense_linears = first.dense_linears;
  memory.sparsity = weights > 0 ? 1 - double(nonzeros) / double(weights) : 0;
  return memory;
}

EngineStats Engine::stats() const {
  const State& s = *state_;
  const KvCacheCounts blocks = s.kv.counts();
  return {.load_seconds = s.load_seconds,
          .running = s.scheduler.running(),
          .waiting = s.scheduler.waiting(),
          .kv_blocks_free = blocks.free,
          .kv_blocks_used = blocks.used,
          .kv_blocks_cached = blocks.cached,
          .preemptions = s.scheduler.preemptions(),
          .prompt_tokens = s.prompt_tokens,
          .generated_tokens = s.generated_tokens,
          .prefix_queried_tokens = s.scheduler.prefix_queried_tokens(),
          .prefix_hit_tokens = s.scheduler.prefix_hit_tokens()};
}

RequestTimes Engine::times(RequestId id) const {
  if (const auto running = state_->requests.find(id); running != state_->requests.end()) {
    return running->second.times;
  }
  const auto ended = state_->ended.find(id);
  check(ended != state_->ended.end(), "request {} ended before the last step", id);
  return ended->second;
}

}  // namespace spinfer
