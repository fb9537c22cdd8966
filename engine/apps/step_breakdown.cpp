#include "engine/apps/step_breakdown.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace spinfer {
namespace {

constexpr std::array<const char*, size_t(OpKind::count_)> kNames = {"linear",        "attention", "norm",
                                                                    "communication", "sampling",  "other"};
constexpr int kTokens = 40;

/// Of a step of the run. Not the median: after a prefill the clocks take some steps to recover.
double step_ms(Engine& engine, const std::vector<Prompt>& prompts) {
  return quantile(run_prompts(engine, prompts).times.step_ms, 0.25);
}

}  // namespace

StepBreakdown measure_breakdown(Engine& engine, std::vector<Prompt> prompts) {
  for (Prompt& prompt : prompts) prompt.params.max_tokens = std::min(prompt.params.max_tokens, kTokens);
  StepBreakdown breakdown;
  std::array<double, size_t(OpKind::count_)> without{};
  breakdown.step_ms = step_ms(engine, prompts);
  for (size_t kind = 0; kind < without.size(); ++kind) {
    engine.leave_out(1u << kind);
    without[kind] = step_ms(engine, prompts);
  }
  engine.leave_out(0);
  breakdown.step_ms = std::min(breakdown.step_ms, step_ms(engine, prompts));  // clocks drift
  breakdown.gaps_ms = breakdown.step_ms;
  for (size_t kind = 0; kind < without.size(); ++kind) {
    breakdown.ms[kind] = std::max(0.0, breakdown.step_ms - without[kind]);
    breakdown.gaps_ms -= breakdown.ms[kind];
  }
  return breakdown;
}

nlohmann::json breakdown_json(const StepBreakdown& breakdown) {
  nlohmann::json json{{"step", breakdown.step_ms}, {"gaps", breakdown.gaps_ms}};
  for (size_t kind = 0; kind < kNames.size(); ++kind) json[kNames[kind]] = breakdown.ms[kind];
  return json;
}

std::string breakdown_table(const StepBreakdown& sparse, const std::optional<StepBreakdown>& dense) {
  std::string table;
  const auto row = [&](const char* label, const auto& value) {
    const auto cell = [&](const StepBreakdown& b) {
      return fmt::format("{:.3f} ms{:>4.0f} %", value(b), b.step_ms > 0 ? 100 * value(b) / b.step_ms : 0);
    };
    table += fmt::format("    {:<24}{:>16}", label, cell(sparse));
    if (dense) table += fmt::format("{:>16}", cell(*dense));
    table += '\n';
  };
  row("a step", [](const StepBreakdown& b) { return b.step_ms; });
  for (size_t kind = 0; kind < kNames.size(); ++kind)
    row(kNames[kind], [kind](const StepBreakdown& b) { return b.ms[kind]; });
  row("gaps", [](const StepBreakdown& b) { return b.gaps_ms; });
  return table;
}

}  // namespace spinfer
