#include "engine/apps/report.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

#include "engine/human_bytes.h"

namespace spinfer {
namespace {

/// Weight bytes a decode step reads, per second of the median step. NaN without decode steps.
double effective_gb_per_s(const RunReport& report) {
  return double(report.memory.step_weights_bytes) / (report.times.tpot_ms_median * 1e6);
}

/// 100 % = the step takes no longer than reading its weights once at the measured read bandwidth.
double byte_floor_percent(const RunReport& report) {
  return 100 * effective_gb_per_s(report) / report.read.gb_per_s;
}

}  // namespace

std::string cache_note(int64_t weights_bytes) {
  return fmt::format(
      "  note: these weights ({}) fit in the CPU's cache ({}): the ratios say little about larger models\n",
      human_bytes(weights_bytes), human_bytes(last_level_cache_bytes()));
}

RunReport make_report(const Engine& engine, const GenerationTimes& times, int threads) {
  RunReport report{
      .memory = engine.memory(), .times = times, .load_seconds = engine.stats().load_seconds, .read = {}};
  if (engine.backend().host)
    report.read = measure_read_bandwidth(report.memory.step_weights_bytes, threads);
  else
    report.read.gb_per_s = engine.read_gbps() * engine.ranks();
  return report;
}

double decode_speedup(const RunReport& sparse, const RunReport& dense) {
  return dense.times.tpot_ms_median / sparse.times.tpot_ms_median;
}

std::string number_or_na(double value, int decimals, std::string_view unit) {
  return std::isfinite(value) ? fmt::format("{:.{}f}{}", value, decimals, unit) : "n/a";
}

nlohmann::json timings_json(const RunReport& report) {
  const GenerationTimes& t = report.times;
  nlohmann::json timings{{"ttft_ms", t.ttft_ms},           {"tpot_ms", t.tpot_ms_median},
                         {"tpot_ms_p90", t.tpot_ms_p90},   {"tpot_ms_p99", t.tpot_ms_p99},
                         {"tokens_per_s", t.tokens_per_s}, {"prefill_ms", t.prefill_ms},
                         {"seconds", t.seconds},           {"prompt_tokens", t.prompt_tokens},
                         {"new_tokens", t.new_tokens},     {"gbps", effective_gb_per_s(report)}};
  if (report.read.gb_per_s > 0) {
    timings["floor_pct"] = byte_floor_percent(report);
    timings["read_gbps"] = report.read.gb_per_s;
    timings["weights_in_cache"] = report.read.in_cache;
  }
  return timings;
}

nlohmann::json memory_json(const RunReport& report) {
  const MemoryReport& m = report.memory;
  nlohmann::json ranks = nlohmann::json::array();
  for (const RankMemory& rank : m.ranks) {
    ranks.push_back({{"weights_bytes", rank.weights_bytes},
                     {"kv_bytes", rank.kv_bytes},
                     {"workspace_bytes", rank.workspace_bytes},
                     {"peak_bytes", rank.peak_bytes},
                     {"driver_bytes", rank.driver_bytes}});
  }
  return {{"ranks", ranks},
          {"parameters", m.parameters},
          {"sparsity", m.sparsity},
          {"sparse_linears", m.sparse_linears},
          {"dense_linears", m.dense_linears},
          {"weights_dense_bytes", m.weights_dense_bytes},
          {"weights_packed_bytes", m.weights_packed_bytes},
          {"weights_bytes", m.weights_bytes},
          {"step_weights_bytes", m.step_weights_bytes},
          {"kv_bytes", m.kv_bytes},
          {"workspace_bytes", m.workspace_bytes},
          {"scratch_bytes", m.scratch_bytes},
          {"graph_bytes", m.graph_bytes},
          {"driver_bytes", m.driver_bytes},
          {"peak_bytes", m.peak_bytes}};
}

nlohmann::json latency_json(const RunReport& report) {
  nlohmann::json column = memory_json(report);
  column.update(timings_json(report));
  column.erase("tpot_ms");
  column["tpot_ms_median"] = report.times.tpot_ms_median;
  column["step_ms"] = report.times.step_ms;
  column["load_seconds"] = report.load_seconds;
  if (report.load_seconds > 0)
    column["load_gbps"] = double(report.memory.weights_packed_bytes) / report.load_seconds * 1e-9;
  return column;
}

std::string report_table(const RunReport& sparse, const std::optional<RunReport>& dense) {
  std::string table;
  const auto row = [&](const char* label, const auto& value) {
    const std::string first = value(sparse);
    table += fmt::format("  {:<28}{:>14}", label, first);
    if (dense) table += fmt::format("{:>14}", value(*dense));
  };
  const auto text_row = [&](const char* label, const auto& value) {
    row(label, value);
    table += '\n';
  };
  // `better` is the gain of the sparse run: dense/sparse where less is better, sparse/dense where more is.
  const auto ratio_row = [&](const char* label, const auto& number, const auto& show, bool less_is_better) {
    row(label, [&](const RunReport& r) -> std::string { return show(number(r)); });
    if (dense) {
      const double a = double(number(sparse)), b = double(number(*dense));
      if (a > 0 && b > 0) table += fmt::format("{:>9.2f}x", less_is_better ? b / a : a / b);
    }
    table += '\n';
  };
  const auto bytes = [](int64_t b) { return human_bytes(b); };
  const auto ms = [](double v) { return number_or_na(v, 2, " ms"); };

  if (dense) table += fmt::format("  {:<28}{:>14}{:>14}{:>10}\n", "", "sparse", "dense", "gain");
  text_row("parameters",
           [](const RunReport& r) { return fmt::format("{:.2f} M", double(r.memory.parameters) / 1e6); });
  text_row("zeros in linear weights",
           [](const RunReport& r) { return fmt::format("{:.1f} %", r.memory.sparsity * 100); });
  text_row("fused linears sparse / dense", [](const RunReport& r) {
    return fmt::format("{} / {}", r.memory.sparse_linears, r.memory.dense_linears);
  });
  text_row("weights as dense fp16", [&](const RunReport& r) { return bytes(r.memory.weights_dense_bytes); });
  text_row("weights as TCA-BME", [&](const RunReport& r) { return bytes(r.memory.weights_packed_bytes); });
  ratio_row(
      "weights on the device", [](const RunReport& r) { return r.memory.weights_bytes; }, bytes, true);
  text_row("KV cache", [&](const RunReport& r) { return bytes(r.memory.kv_bytes); });
  text_row("workspace", [&](const RunReport& r) {
    return bytes(r.memory.workspace_bytes + r.memory.scratch_bytes + r.memory.graph_bytes);
  });
  ratio_row(
      "peak", [](const RunReport& r) { return r.memory.peak_bytes; }, bytes, true);
  for (size_t r = 0; sparse.memory.ranks.size() > 1 && r < sparse.memory.ranks.size(); ++r) {
    const std::string label = fmt::format("  of these rank {}", r);
    text_row(label.c_str(), [&](const RunReport& run) { return bytes(run.memory.ranks.at(r).peak_bytes); });
  }
  if (sparse.memory.driver_bytes > 0)
    text_row("in use, says the driver", [&](const RunReport& r) { return bytes(r.memory.driver_bytes); });
  ratio_row(
      "prefill", [](const RunReport& r) { return r.times.prefill_ms; }, ms, true);
  ratio_row(
      "time to first token", [](const RunReport& r) { return r.times.ttft_ms; }, ms, true);
  ratio_row(
      "time per output token", [](const RunReport& r) { return r.times.tpot_ms_median; }, ms, true);
  text_row("  90 % of steps within", [&](const RunReport& r) { return ms(r.times.tpot_ms_p90); });
  text_row("  99 % of steps within", [&](const RunReport& r) { return ms(r.times.tpot_ms_p99); });
  ratio_row(
      "throughput", [](const RunReport& r) { return r.times.tokens_per_s; },
      [](double v) { return fmt::format("{:.1f} tok/s", v); }, false);
  text_row("weights read by a step", [&](const RunReport& r) { return bytes(r.memory.step_weights_bytes); });
  text_row("effective bandwidth",
           [](const RunReport& r) { return number_or_na(effective_gb_per_s(r), 1, " GB/s"); });
  if (sparse.read.gb_per_s > 0) {
    text_row("plain read loop",
             [](const RunReport& r) { return fmt::format("{:.1f} GB/s", r.read.gb_per_s); });
    text_row("share of the byte floor",
             [](const RunReport& r) { return number_or_na(byte_floor_percent(r), 0, " %"); });
  }
  if (dense && dense->read.in_cache) table += cache_note(dense->memory.step_weights_bytes);
  return table;
}

}  // namespace spinfer
