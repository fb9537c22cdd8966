// A subcommand: adds its flags to the program and says what to run. Each lives in its own file of this
// folder.
#pragma once

#include <CLI/CLI.hpp>

namespace spinfer {

// Each registers one subcommand whose callback does the work and throws on failure.
void add_tokenize(CLI::App& app);
void add_detokenize(CLI::App& app);
void add_generate(CLI::App& app);
void add_score(CLI::App& app);
void add_pack(CLI::App& app);
void add_prune(CLI::App& app);
void add_perplexity(CLI::App& app);
void add_inspect(CLI::App& app);
void add_doctor(CLI::App& app);
void add_chat(CLI::App& app);
void add_serve(CLI::App& app);
// Below `bench`.
void add_bench_latency(CLI::App& bench);
void add_bench_kernel(CLI::App& bench);
void add_bench_throughput(CLI::App& bench);
void add_bench_serve(CLI::App& bench);

}  // namespace spinfer
