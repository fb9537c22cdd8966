// The table that can end every run: weights, memory, latency, sparse next to dense. One source for text and
// JSON.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "engine/apps/generation_run.h"
#include "engine/apps/read_bandwidth.h"
#include "engine/engine.h"

namespace spinfer {

struct RunReport {
  MemoryReport memory;
  GenerationTimes times;
  double load_seconds = 0;  ///< making the weights resident
  ReadBandwidth read;       ///< what a plain read loop reaches over as many bytes as a decode step reads
};

/// The report of a finished run; measures the read bandwidth where the engine runs on the CPU.
RunReport make_report(const Engine& engine, const GenerationTimes& times, int threads);

/// Figures that a run does not have (no decode step, no time per output token) are null.
/// {"ttft_ms", "tpot_ms", "tokens_per_s", …} and {"weights_dense_bytes", "weights_bytes", "kv_bytes",
/// "peak_bytes", …} of `--json`.
nlohmann::json timings_json(const RunReport& report);
nlohmann::json memory_json(const RunReport& report);
/// One column of `bench latency`: both of the above in one object, with the names of `--json`.
nlohmann::json latency_json(const RunReport& report);

/// How much faster `sparse` decodes than `dense`: the ratio of median times per output token; NaN where a run
/// had no decode step.
double decode_speedup(const RunReport& sparse, const RunReport& dense);

/// The table as text, with a second column and the ratios where `dense` is given.
std::string report_table(const RunReport& sparse, const std::optional<RunReport>& dense);

/// A line that says why the ratios of a small model say little about a large one: its weights fit in the
/// CPU's cache.
std::string cache_note(int64_t weights_bytes);

/// "1.23 ms"; "n/a" for what is undefined, which is NaN here and null in JSON.
std::string number_or_na(double value, int decimals, std::string_view unit = {});

}  // namespace spinfer
