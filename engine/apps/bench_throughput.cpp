// `spinfer bench throughput`: continuous batching over a workload, without HTTP.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>
#include <unordered_map>

#include "engine/apps/command.h"
#include "engine/apps/generation_run.h"
#include "engine/apps/interrupt.h"
#include "engine/apps/options.h"
#include "engine/apps/output.h"
#include "engine/apps/progress.h"
#include "engine/apps/read_bandwidth.h"
#include "engine/apps/report.h"
#include "engine/apps/serving_figures.h"
#include "engine/apps/workload.h"
#include "kernels/check.h"
#include "kernels/ops.h"

namespace spinfer {
namespace {

struct ThroughputFlags {
  CommonFlags common;
  CapacityFlags capacity;
  WorkloadFlags workload;
  std::string rate = "inf";
  ConfigFlags config;
  std::string baseline;
  double duration = 0;
};

/// Steps that only decode.
struct DecodeSteps {
  std::vector<double> gaps;  ///< seconds before each in which the device waited for the host
  double seconds = 0;
  int64_t tokens = 0;
};

/// While requests wait: neither the first filling of the batch nor the last requests, which run nearly alone,
/// are what a busy server does.
struct Saturation {
  std::optional<double> begin;  ///< when the first request was answered
  int64_t counted = 0;          ///< tokens since then
  double seconds = 0;           ///< from then to the last step after which a request waited
  int64_t tokens = 0;           ///< of that time

  void add(double now, int64_t new_tokens, bool answered, bool waiting) {
    if (begin) counted += new_tokens;
    if (!begin && answered) begin = now;
    if (!begin || !waiting) return;
    seconds = now - *begin;
    tokens = counted;
  }
};

class ThroughputRun {
 public:
  ThroughputRun(Engine& engine, std::vector<WorkItem> items, const ThroughputFlags& flags, uint64_t seed)
      : engine_(engine), items_(std::move(items)), flags_(flags), seed_(seed) {
    check(engine_.max_model_len() >= 2, "the model takes {} tokens: too few", engine_.max_model_len());
    cut_ = cut_to_model(items_, engine_.max_model_len());
  }

  nlohmann::json measure() {
    start_ = Clock::now();
    engine_.warm_up();
    warm_up(engine_, {prompt_of(0)});
    warm_up_seconds_ = seconds();
    const EngineStats before = engine_.stats();
    ProgressBar bar("serving", ProgressUnit::items);
    start_ = Clock::now();
    run_.requests.reserve(items_.size());
    while (next_ < items_.size() || engine_.has_work()) {
      if (flags_.duration > 0 && seconds() >= flags_.duration) break;
      stop_if_interrupted();
      admit_due();
      if (engine_.has_work()) {
        step();
      } else {
        std::this_thread::sleep_until(
            start_ + std::chrono::duration_cast<Clock::duration>(
                         std::chrono::duration<double>(std::min(items_[next_].arrival, seconds() + 0.05))));
      }
      bar.update(int64_t(run_.requests.size()), int64_t(items_.size()));
    }
    run_.seconds = seconds();
    nlohmann::json json = figures(before);
    for (const auto& [id, request] : running_) engine_.cancel(id);
    while (engine_.has_work()) engine_.step();
    return json;
  }

 private:
  using Clock = std::chrono::steady_clock;
  struct Running {
    double arrival, first = 0, last = 0;
    RequestFigures figures;
  };

  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  Prompt prompt_of(size_t index) const {
    Prompt prompt;
    for (int i = 0; i < items_[index].input_tokens; ++i) {
      const float draw = sample_uniform(seed_ + index, uint32_t(i));
      prompt.ids.push_back(int32_t(draw * float(engine_.config().vocab_size)));
    }
    prompt.params = {.max_tokens = items_[index].output_tokens, .temperature = 0, .ignore_eos = true};
    return prompt;
  }

  void admit_due() {
    for (; next_ < items_.size() && items_[next_].arrival <= seconds(); ++next_) {
      Prompt prompt = prompt_of(next_);
      Running running{.arrival = items_[next_].arrival, .figures = {}};
      running.figures.input_tokens = int64_t(prompt.ids.size());
      running_[engine_.add_request(std::move(prompt.ids), prompt.params)] = std::move(running);
    }
  }

  void step() {
    auto updates = engine_.step();
    const double now = seconds();
    const StepStats step = engine_.last_step();
    const EngineStats stats = engine_.stats();
    most_running_ = std::max(most_running_, stats.running);
    most_blocks_ = std::max(most_blocks_, stats.kv_blocks_used);
    if (step.decode_tokens > 0 && step.prefill_tokens == 0) {
      decode_.gaps.push_back(step.host_gap_seconds);
      decode_.seconds += step.seconds;
      decode_.tokens += step.decode_tokens;
    }
    int64_t tokens = 0;
    const size_t answered = run_.requests.size();
    for (const RequestUpdate& update : updates) {
      if (update.finish == FinishReason::error) throw Error(update.error);
      tokens += int64_t(update.new_ids.size());
      take(update, now);
    }
    saturation_.add(now, tokens, run_.requests.size() > answered, stats.waiting > 0);
  }

  void take(const RequestUpdate& update, double now) {
    Running& request = running_.at(update.id);
    if (!update.new_ids.empty()) {
      if (request.first == 0) {
        request.first = now;
      } else {
        request.figures.gaps.push_back(now - request.last);
      }
      request.last = now;
      request.figures.output_tokens += int64_t(update.new_ids.size());
    }
    if (update.finish == FinishReason::none) return;
    request.figures.first_token = request.first - request.arrival;
    request.figures.end = now - request.arrival;
    run_.requests.push_back(std::move(request.figures));
    running_.erase(update.id);
  }

  nlohmann::json figures(const EngineStats& before) const {
    const EngineStats stats = engine_.stats();
    const MemoryReport memory = engine_.memory();
    nlohmann::json json = serving_json(run_);
    if (flags_.workload.samples) json["samples"] = samples_json(run_);
    double gap = 0;
    for (const double seconds : decode_.gaps) gap += seconds;
    const size_t steps = decode_.gaps.size();
    json["warm_up_s"] = warm_up_seconds_;
    json["unanswered"] = items_.size() - run_.requests.size();
    json["saturated_s"] = saturation_.seconds;
    json["saturated_output_throughput"] =
        saturation_.seconds > 0 ? double(saturation_.tokens) / saturation_.seconds : 0;
    json["preemptions"] = stats.preemptions - before.preemptions;
    json["requests_cut_to_model"] = cut_;
    json["most_running"] = most_running_;
    json["kv_blocks"] = stats.kv_blocks_free + stats.kv_blocks_used + stats.kv_blocks_cached;
    json["kv_blocks_most_used"] = most_blocks_;
    json["kv_bytes"] = memory.kv_bytes;
    json["weights_bytes"] = memory.weights_bytes;
    json["step_weights_bytes"] = memory.step_weights_bytes;
    json["weights_in_cache"] = engine_.backend().host && fits_cache(memory.step_weights_bytes);
    json["peak_bytes"] = memory.peak_bytes;
    json["driver_bytes"] = memory.driver_bytes;
    json["decode_steps"] = steps;
    json["decode_batch_mean"] = mean(double(decode_.tokens), steps);
    json["decode_step_ms_mean"] = mean(decode_.seconds, steps) * 1e3;
    json["host_gap_ms_mean"] = mean(gap, steps) * 1e3;
    json["host_gap_ms_p99"] = quantile(decode_.gaps, 0.99) * 1e3;
    json["host_gap_pct"] = decode_.seconds > 0 ? 100 * gap / decode_.seconds : kNone;
    return json;
  }

  Engine& engine_;
  std::vector<WorkItem> items_;
  const ThroughputFlags& flags_;
  uint64_t seed_;
  double warm_up_seconds_ = 0;
  size_t next_ = 0;
  int64_t cut_ = 0, most_blocks_ = 0;
  int most_running_ = 0;
  std::unordered_map<RequestId, Running> running_;
  DecodeSteps decode_;
  Saturation saturation_;
  ServingRun run_;
  Clock::time_point start_;
};

nlohmann::json measure(const ThroughputFlags& flags, bool dense) {
  EngineOptions options = flags.common.engine_options();
  flags.capacity.apply(options);
  options.dense = dense;
  flags.config.apply(options);
  const uint64_t seed = flags.common.seed.value_or(0);
  std::vector<WorkItem> items = make_workload(flags.workload, flags.rate, seed);
  std::unique_ptr<Engine> engine;
  {
    ProgressBar bar(dense ? "loading dense" : "loading sparse", ProgressUnit::bytes);
    options.load_progress = bar.callback();
    engine = Engine::create(options);
  }
  return ThroughputRun(*engine, std::move(items), flags, seed).measure();
}

/// Nothing if no request waited once the first was answered.
std::string saturated_line(const nlohmann::json& figures) {
  const double seconds = figures["saturated_s"];
  if (seconds == 0) return {};
  return fmt::format(
      "{:.1f} output tokens/s in the {:.2f} s from the first answer on in which requests waited\n",
      figures["saturated_output_throughput"].get<double>(), seconds);
}

std::string table_of(const char* title, const nlohmann::json& figures) {
  return fmt::format(
      "{}: {}decode steps of {} requests: {} ms each, of which the device waits {} ms for the host ({} %)\n"
      "{} preemptions; at most {} running, {} of {} KV blocks used\n"
      "{}{}",
      title, serving_table(figures), decimal(figures["decode_batch_mean"], 1),
      decimal(figures["decode_step_ms_mean"], 3), decimal(figures["host_gap_ms_mean"], 4),
      decimal(figures["host_gap_pct"], 2), figures["preemptions"].get<int64_t>(),
      figures["most_running"].get<int>(), figures["kv_blocks_most_used"].get<int64_t>(),
      figures["kv_blocks"].get<int64_t>(), saturated_line(figures),
      cut_line(figures["requests_cut_to_model"]));
}

void run_throughput(const ThroughputFlags& flags) {
  flags.config.check_source(flags.common.model);
  nlohmann::json document{{"sparse", measure(flags, false)}};
  if (!flags.baseline.empty()) {
    document["dense"] = measure(flags, true);
    const double dense = document["dense"]["output_throughput"];
    document["speedup"] = dense > 0 ? document["sparse"]["output_throughput"].get<double>() / dense : kNone;
  }
  if (flags.common.json) return print_json(document);
  print_out(table_of("sparse", document["sparse"]));
  if (flags.baseline.empty()) return;
  const nlohmann::json& dense = document["dense"];
  print_out(table_of("\ndense", dense));
  print_out(fmt::format("\noutput tokens/s, sparse to dense: {}×\n", decimal(document["speedup"], 2)));
  if (dense["weights_in_cache"]) print_out(cache_note(dense["step_weights_bytes"]));
}

}  // namespace

void add_bench_throughput(CLI::App& bench) {
  auto flags = std::make_shared<ThroughputFlags>();
  CLI::App* command = bench.add_subcommand("throughput", "many requests, continuously batched, without HTTP");
  flags->common.add_to(*command, CommonFlags::Model::optional);
  flags->capacity.add_to(*command);
  flags->workload.add_to(*command);
  command
      ->add_option("--request-rate", flags->rate,
                   "requests a second; inf = all at once; trace = as the trace has them")
      ->check(request_rate())
      ->capture_default_str();
  flags->config.add_to(*command, "config.json of a model to fill with random weights, instead of -m");
  command
      ->add_option("--duration", flags->duration,
                   "stop after this many seconds, answered or not; 0 = when all are answered")
      ->check(number_in(0, 1e6, "0..1e6"))
      ->capture_default_str();
  command->add_option("--baseline", flags->baseline, "dense: also run the same masked weights dense")
      ->check(CLI::IsMember({"dense"}));
  command->callback([flags] { run_throughput(*flags); });
}

}  // namespace spinfer
