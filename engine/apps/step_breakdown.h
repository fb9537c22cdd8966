// Where the time of a decode step goes, by kind of op: what the step is shorter without it. Unlike timing ops
// one by one this leaves everything else as it is: graphs, overlapping launches, caches.
#pragma once

#include <array>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/apps/generation_run.h"
#include "engine/engine.h"

namespace spinfer {

struct StepBreakdown {
  double step_ms = 0;                                  ///< the whole step
  std::array<double, size_t(OpKind::count_)> ms = {};  ///< what it is shorter without the kind
  double gaps_ms = 0;                                  ///< the rest: copies, launches, the host
};

/// Runs the first tokens of `prompts` once as they are and once without each kind of op.
StepBreakdown measure_breakdown(Engine& engine, std::vector<Prompt> prompts);

/// {"step", "linear", "attention", "norm", "communication", "sampling", "other", "gaps"}, milliseconds.
nlohmann::json breakdown_json(const StepBreakdown& breakdown);
/// Lines for the table that report_table makes.
std::string breakdown_table(const StepBreakdown& sparse, const std::optional<StepBreakdown>& dense);

}  // namespace spinfer
