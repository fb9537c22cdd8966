// What the serving benchmarks send: how long prompts and answers are, and when they come.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

namespace spinfer {

struct WorkItem {
  double arrival = 0;  ///< seconds since the start
  int input_tokens = 0;
  int output_tokens = 0;
};

struct WorkloadFlags {
  int num_prompts = 0;  ///< 0: 200, or the whole trace
  int input_len = 256;
  int output_len = 64;
  std::string trace;
  bool samples = false;  ///< every request in the JSON

  void add_to(CLI::App& command);
};

/// "inf": all at once; "trace": as the trace has it; else requests a second, as a Poisson process.
CLI::Validator request_rate();

/// In order of arrival. Throws `Error` naming file and line for a trace that cannot be read.
std::vector<WorkItem> make_workload(const WorkloadFlags& flags, const std::string& rate, uint64_t seed);

/// A workload recorded with a larger model is cut to what one of `max_model_len` tokens (at least 2) takes:
/// the answer to all but one of them, the prompt to the rest. Returns how many requests were longer.
int64_t cut_to_model(std::vector<WorkItem>& items, int64_t max_model_len);

/// A CSV whose first line names its columns: TIMESTAMP ("2023-11-16 18:15:46.6805900", with or without "T",
/// "Z" or "+01:00" as ISO 8601 has them, or seconds), ContextTokens, GeneratedTokens, as the Azure LLM
/// inference traces have them. Throws `Error` naming `name` and the line.
std::vector<WorkItem> parse_trace(const std::string& text, const std::string& name);

}  // namespace spinfer
