// spinfer: one program, one subcommand per file of this folder. Exit status: 0 done, 2 usage, 1 everything
// else, 130 SIGINT.
#include <fmt/ranges.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <new>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "engine/apps/command.h"
#include "engine/apps/interrupt.h"
#include "engine/apps/output.h"
#include "kernels/check.h"
#include "models/mapped_file.h"
#include "tokenizer/utf8.h"

namespace {

constexpr int kExitFailure = 1;
constexpr int kExitUsage = 2;

/// `text` with control characters, which a terminal would obey, and bytes that are no UTF-8 as "\x1b".
std::string visible(std::string_view text) {
  std::string shown;
  while (!text.empty()) {
    const auto [kind, length] = spinfer::first_char(text);
    const std::string_view character = text.substr(0, length);
    const bool control =
        uint8_t(text[0]) < 0x20 || text[0] == 0x7f || (character >= "\u0080" && character <= "\u009f");
    if (kind == spinfer::Utf8Char::kValid && !control) {
      shown += character;
    } else {
      for (const char byte : character) shown += fmt::format("\\x{:02x}", uint8_t(byte));
    }
    text.remove_prefix(length);
  }
  return shown;
}

int say(int status, const std::string& message) {
  const std::string line = "spinfer: " + visible(message) + "\n";
  std::fputs(line.c_str(), stderr);  // whether it arrives changes nothing
  return status;
}

/// CLI11 only says that some subcommand is missing: this names the word that is none, and those that are.
void check_command(const CLI::App& app, std::span<const std::string> arguments) {
  if (!arguments.empty() && arguments[0].starts_with('-') && arguments[0] != "-") {
    if (arguments[0] == "-h" || arguments[0] == "--help" || arguments[0] == "--version") return;
    throw spinfer::UsageError(
        fmt::format("{}: flags come after the command (see {} --help)", arguments[0], app.get_name()));
  }
  std::string names;
  const CLI::App* chosen = nullptr;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names += (names.empty() ? "" : ", ") + command->get_name();
    if (!arguments.empty() && command->get_name() == arguments[0]) chosen = command;
  }
  if (arguments.empty()) throw spinfer::UsageError(fmt::format("give a command: {}", names));
  if (!chosen) {
    throw spinfer::UsageError(
        fmt::format("'{}' is no command of {}; there are: {}", arguments[0], app.get_name(), names));
  }
  if (chosen->get_require_subcommand_min() > 0) check_command(*chosen, arguments.subspan(1));
}

/// What CLI11 says, with the short spelling of an option beside the long one, and where to find help.
std::string usage_message(const CLI::App& app, const CLI::ParseError& error) {
  std::string message = error.what(), path;
  const CLI::App* command = &app;
  while (!command->get_subcommands().empty()) {
    command = command->get_subcommands()[0];
    path += command->get_name() + " ";
  }
  if (dynamic_cast<const CLI::ExtrasError*>(&error)) {  // its own text lists them last first
    return fmt::format("not expected: {} (see spinfer {}--help)", fmt::join(app.remaining(true), " "), path);
  }
  for (const CLI::Option* option : command->get_options()) {
    if (option->get_snames().empty() || option->get_lnames().empty()) continue;
    const std::string name = "--" + option->get_lnames()[0];
    const size_t at = message.find(name);
    if (at == std::string::npos || message[at + name.size()] == '-') continue;
    message.insert(at, "-" + option->get_snames()[0] + ", ");
    break;
  }
  return fmt::format("{} (see spinfer {}--help)", message, path);
}

bool is_short_tp(std::string_view argument) {
  if (!argument.starts_with("-tp")) return false;
  argument.remove_prefix(3);
  return argument.starts_with('=') || argument.find_first_not_of("0123456789") == std::string_view::npos;
}

/// "-tp", "-tp=2" and "-tp2", which CLI11 would read as -t with a value, in the long spelling. What is the
/// value of an option stays as it is.
void spell_out_tp(const CLI::App& app, std::span<std::string> arguments) {
  const CLI::App* command = &app;
  for (size_t i = 0; i < arguments.size(); ++i) {
    for (const CLI::App* below : command->get_subcommands([](const CLI::App*) { return true; })) {
      if (below->get_name() != arguments[i]) continue;
      command = below;
      break;
    }
    if (const CLI::Option* option = command->get_option_no_throw(arguments[i])) {
      i += size_t(option->get_items_expected_min());
    } else if (is_short_tp(arguments[i])) {
      const std::string value = arguments[i].substr(3);
      arguments[i] = value.empty() || value[0] == '=' ? "--tp" + value : "--tp=" + value;
    }
  }
}

/// --help and --version.
int print_help(CLI::App& app, const CLI::ParseError& error) {
  std::ostringstream text;
  app.exit(error, text, text);
  try {
    spinfer::print_out(text.str());
    return 0;
  } catch (const spinfer::OutputClosed&) {
    return 0;
  } catch (const std::exception& failure) {
    return say(kExitFailure, failure.what());
  }
}

int run(CLI::App& app, std::vector<std::string> arguments) {
  try {
    check_command(app, arguments);
    std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them last first
    app.parse(arguments);
    spinfer::flush_output();
    return 0;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return print_help(app, error);
    return say(kExitUsage, usage_message(app, error));
  } catch (const spinfer::Interrupted&) {
    return spinfer::interrupt_status();
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
  std::signal(SIGXFSZ, SIG_IGN);  // a file size limit is a failed write, not a crash
  spinfer::end_where_pages_are_lost();
  try {
    spinfer::watch_interrupts();
  } catch (const std::exception& error) {
    return say(kExitFailure, fmt::format("the thread that waits for signals: {}", error.what()));
  }
  spdlog::set_default_logger(spdlog::stderr_color_mt("spinfer"));
  spdlog::set_level(spdlog::level::warn);

  CLI::App app{
      "spinfer runs OPT, LLaMA and Qwen2 models with unstructured-sparse weights (TCA-BME), on CPUs and "
      "GPUs"};
  app.name("spinfer");
  app.set_version_flag("--version", "spinfer " SPINFER_VERSION);
  app.require_subcommand(1);
  app.failure_message(CLI::FailureMessage::simple);
  spinfer::add_generate(app);
  spinfer::add_chat(app);
  spinfer::add_serve(app);
  spinfer::add_score(app);
  spinfer::add_pack(app);
  spinfer::add_prune(app);
  spinfer::add_perplexity(app);
  spinfer::add_inspect(app);
  CLI::App* bench = app.add_subcommand("bench", "measure kernels and whole runs");
  bench->require_subcommand(1);
  spinfer::add_bench_kernel(*bench);
  spinfer::add_bench_latency(*bench);
  spinfer::add_bench_throughput(*bench);
  spinfer::add_bench_serve(*bench);
  spinfer::add_doctor(app);
  spinfer::add_tokenize(app);
  spinfer::add_detokenize(app);

  std::vector<std::string> arguments(argv + 1, argv + argc);
  spell_out_tp(app, arguments);
  return run(app, std::move(arguments));
}
