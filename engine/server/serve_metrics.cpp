#include "engine/server/serve_metrics.h"

#include <prometheus/histogram.h>
#include <prometheus/text_serializer.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

namespace spinfer {
namespace {

using prometheus::ClientMetric;
using prometheus::Histogram;
using prometheus::MetricFamily;
using prometheus::MetricType;

using Buckets = Histogram::BucketBoundaries;
const Buckets kFirstTokenBuckets = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                    0.5,   1,      2.5,   5,    10,    30,   60};
const Buckets kTokenBuckets = {0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015,
                               0.02,   0.03,  0.05,  0.1,   0.25,  0.5,    1};
const Buckets kEndBuckets = {0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300};
const Buckets kGapBuckets = {0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.1};
const Buckets kStepBuckets = {0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5};

/// One value with at most one label.
struct Sample {
  double value;
  const char* label = nullptr;
  std::string label_value = {};
};

MetricFamily family(const char* name, const char* help, MetricType type, const std::vector<Sample>& samples) {
  MetricFamily result{name, help, type, {}};
  for (const Sample& sample : samples) {
    ClientMetric metric;
    if (sample.label) metric.label.push_back({sample.label, sample.label_value});
    metric.gauge.value = sample.value;
    metric.counter.value = sample.value;
    result.metric.push_back(std::move(metric));
  }
  return result;
}

MetricFamily family(const char* name, const char* help, const Histogram& histogram) {
  return {name, help, MetricType::Histogram, {histogram.Collect()}};
}

/// Each rank's bytes of one kind.
std::vector<Sample> of_ranks(const MemoryReport& memory, int64_t RankMemory::*bytes) {
  std::vector<Sample> samples;
  for (const RankMemory& rank : memory.ranks)
    samples.push_back({double(rank.*bytes), "rank", std::to_string(samples.size())});
  return samples;
}

constexpr std::array kReasons = {FinishReason::stop, FinishReason::length, FinishReason::cancelled,
                                 FinishReason::error};

}  // namespace

struct ServeMetrics::State {
  Histogram ttft{kFirstTokenBuckets};
  Histogram tpot{kTokenBuckets};
  Histogram e2e{kEndBuckets};
  Histogram step{kStepBuckets};
  Histogram host_gap{kGapBuckets};
  std::array<double, kReasons.size()> ended = {};
};

ServeMetrics::ServeMetrics() : state_(std::make_unique<State>()) {}
ServeMetrics::~ServeMetrics() = default;

void ServeMetrics::count_end(FinishReason reason, const ChoiceTimes& times) {
  for (size_t i = 0; i < kReasons.size(); ++i) state_->ended[i] += kReasons[i] == reason;
  if (reason != FinishReason::stop && reason != FinishReason::length) return;
  state_->ttft.Observe(times.first_token);
  state_->e2e.Observe(times.end);
  if (times.tokens > 1)
    state_->tpot.Observe((times.last_token - times.first_token) / double(times.tokens - 1));
}

void ServeMetrics::count_step(const StepStats& step) {
  if (step.decode_tokens + step.prefill_tokens == 0) return;
  state_->step.Observe(step.seconds);
  state_->host_gap.Observe(step.host_gap_seconds);
}

std::string ServeMetrics::text(const EngineStatus& engine, const HttpCounts& http) const {
  const EngineStats& stats = engine.stats;
  const MemoryReport& memory = engine.memory;
  constexpr auto kGauge = MetricType::Gauge, kCounter = MetricType::Counter;
  std::vector<Sample> ended;
  for (size_t i = 0; i < kReasons.size(); ++i)
    ended.push_back({state_->ended[i], "reason", to_string(kReasons[i])});
  std::vector<MetricFamily> families = {
      family("spinfer_ready", "1 once the model is loaded and works", kGauge,
             {{double(engine.state == EngineState::ready)}}),
      family("spinfer_requests_running", "Requests in the running batch", kGauge, {{double(stats.running)}}),
      family("spinfer_requests_waiting", "Requests waiting for their turn", kGauge,
             {{double(stats.waiting)}}),
      family("spinfer_requests_preempted_total", "Times a request gave up its KV blocks to be recomputed",
             kCounter, {{double(stats.preemptions)}}),
      family("spinfer_requests_ended_total", "Requests that ended, by how", kCounter, ended),
      family("spinfer_kv_blocks", "Blocks of the KV cache, by state", kGauge,
             {{double(stats.kv_blocks_free), "state", "free"},
              {double(stats.kv_blocks_used), "state", "used"},
              {double(stats.kv_blocks_cached), "state", "cached"}}),
      family("spinfer_prefix_queried_tokens_total", "Prompt tokens looked up in the prefix cache", kCounter,
             {{double(stats.prefix_queried_tokens)}}),
      family("spinfer_prefix_hit_tokens_total", "Prompt tokens found in the prefix cache", kCounter,
             {{double(stats.prefix_hit_tokens)}}),
      family("spinfer_prompt_tokens_total", "Prompt tokens of all requests", kCounter,
             {{double(stats.prompt_tokens)}}),
      family("spinfer_generated_tokens_total", "Tokens generated", kCounter,
             {{double(stats.generated_tokens)}}),
      family("spinfer_weights_bytes",
             "Bytes of all weights: were they dense, packed by the format, on the devices", kGauge,
             {{double(memory.weights_dense_bytes), "form", "dense"},
              {double(memory.weights_packed_bytes), "form", "packed"},
              {double(memory.weights_bytes), "form", "device"}}),
      family("spinfer_kv_cache_bytes", "Bytes of the KV cache", kGauge, {{double(memory.kv_bytes)}}),
      family("spinfer_memory_peak_bytes", "Most bytes the devices held while loading", kGauge,
             {{double(memory.peak_bytes)}}),
      family("spinfer_rank_weights_bytes", "Bytes of a tensor-parallel rank's weights", kGauge,
             of_ranks(memory, &RankMemory::weights_bytes)),
      family("spinfer_rank_kv_cache_bytes", "Bytes of a rank's KV cache", kGauge,
             of_ranks(memory, &RankMemory::kv_bytes)),
      family("spinfer_rank_memory_peak_bytes", "Most bytes a rank's device held while loading", kGauge,
             of_ranks(memory, &RankMemory::peak_bytes)),
      family("spinfer_sparsity", "Share of zeros in the linear weights", kGauge, {{memory.sparsity}}),
      family("spinfer_http_connections", "Open connections", kGauge, {{double(http.connections)}}),
      family("spinfer_http_accepted_total", "Connections accepted", kCounter, {{double(http.accepted)}}),
      family("spinfer_http_given_up_total", "Connections cut off: too slow, or too much sent ahead", kCounter,
             {{double(http.given_up)}}),
      family("spinfer_ttft_seconds", "Time to first token, from a request's arrival", state_->ttft),
      family("spinfer_tpot_seconds", "Time per output token after the first", state_->tpot),
      family("spinfer_e2e_seconds", "Time from a request's arrival to its end", state_->e2e),
      family("spinfer_step_seconds", "Time of one engine step", state_->step),
      family("spinfer_host_gap_seconds", "Time before a step in which the device waited for the host",
             state_->host_gap)};
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace spinfer
