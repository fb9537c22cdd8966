// The table that can end every run: weights, memory, latency, sparse next to dense. One source for text and
// JSON.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "engine/apps/generation_run.h"
#include "engine/engine.h"

namespace spinfer {

struct RunReport {
  MemoryReport memory;
  GenerationTimes times;
  double read_gb_per_s = 0;  ///< what a plain read loop reaches on this device; 0 = not measured
};

/// {"ttft_ms", "tpot_ms", "tokens_per_s", …} and {"weights_dense_bytes", "weights_bytes", "kv_bytes",
/// "peak_bytes", …} of CLI.md.
nlohmann::json timings_json(const RunReport& report);
nlohmann::json memory_json(const RunReport& report);
/// One column of `bench latency`: both of the above in one object, with the names CLI.md gives there.
nlohmann::json latency_json(const RunReport& report);

/// How much faster `sparse` decodes than `dense`: the ratio of median times per output token.
double decode_speedup(const RunReport& sparse, const RunReport& dense);

/// The table as text, with a second column and the ratios where `dense` is given.
std::string report_table(const RunReport& sparse, const std::optional<RunReport>& dense);

/// "1.23 GB", decimal units.
std::string human_bytes(int64_t bytes);

}  // namespace spinfer
