// spinfer: one program, one subcommand per file of this folder. Exit status: 0 done, 2 usage, 1 everything
// else, 130 SIGINT.
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "engine/apps/command.h"
#include "engine/apps/interrupt.h"
#include "engine/apps/output.h"
#include "kernels/check.h"

namespace {

constexpr int kExitFailure = 1;
constexpr int kExitUsage = 2;

int say(int status, const std::string& message) {
  std::string line = message;
  std::replace(line.begin(), line.end(), '\n', ' ');
  fmt::print(stderr, "spinfer: {}\n", line);
  return status;
}

int run(CLI::App& app, std::vector<std::string> arguments) {
  try {
    std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them last first
    app.parse(arguments);
    spinfer::flush_output();
    return 0;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    const auto chosen = app.get_subcommands();
    return say(kExitUsage, fmt::format("{} (see spinfer {}--help)", error.what(),
                                       chosen.empty() ? "" : chosen[0]->get_name() + " "));
  } catch (const spinfer::Interrupted&) {
    return spinfer::kExitInterrupted;
  } catch (const spinfer::OutputClosed&) {
    return 0;
  } catch (const spinfer::UsageError& error) {
    return say(kExitUsage, error.what());
  } catch (const std::bad_alloc&) {
    return say(kExitFailure, "out of memory");
  } catch (const std::exception& error) {
    return say(kExitFailure, error.what());
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  spinfer::watch_interrupts();
  spdlog::set_default_logger(spdlog::stderr_color_mt("spinfer"));
  spdlog::set_level(spdlog::level::warn);

  CLI::App app{
      "spinfer runs OPT and LLaMA models with unstructured-sparse weights (TCA-BME), on CPUs and GPUs"};
  app.name("spinfer");
  app.set_version_flag("--version", "spinfer " SPINFER_VERSION);
  app.require_subcommand(1);
  app.failure_message(CLI::FailureMessage::simple);
  spinfer::add_generate(app);
  spinfer::add_score(app);
  spinfer::add_pack(app);
  spinfer::add_prune(app);
  spinfer::add_perplexity(app);
  spinfer::add_inspect(app);
  CLI::App* bench = app.add_subcommand("bench", "measure kernels and whole runs");
  bench->require_subcommand(1);
  spinfer::add_bench_latency(*bench);
  spinfer::add_doctor(app);
  spinfer::add_tokenize(app);
  spinfer::add_detokenize(app);

  std::vector<std::string> arguments(argv + 1, argv + argc);
  for (auto& argument : arguments) {
    if (argument == "-tp") argument = "--tp";
  }
  return run(app, std::move(arguments));
}
