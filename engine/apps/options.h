// Flags that several subcommands share, and strict checks of their values.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/engine.h"

namespace spinfer {

/// What a command has a use for, of the flags that most share.
struct FlagUses {
  bool model_run = false;  ///< --deterministic, --watchdog, --enforce-eager
  bool device = false, ranks = false, threads = false, seed = false;
};
inline constexpr FlagUses kAllFlags{true, true, true, true, true};

/// The flags that most commands share.
struct CommonFlags {
  std::string model;
  std::string device = "auto";
  int tensor_parallel = 1;
  std::optional<double> watchdog;
  int threads = 0;
  std::optional<uint64_t> seed;
  std::string log_level = "warn";
  bool json = false;
  bool deterministic = false;
  bool enforce_eager = false;

  enum class Model { required, optional, none };
  /// Flags a command has no use for are taken all the same, as from a script that gives all commands the
  /// same, but its help does not show them, and to -m it says so. Only --watchdog and --enforce-eager are
  /// refused there.
  void add_to(CLI::App& command, Model model, const FlagUses& uses = kAllFlags);
  void apply_log_level() const;
  /// Applies the log level too; `progress` is not set.
  EngineOptions engine_options() const;
  /// Throws `UsageError` if a command that has no use for them is asked for several ranks.
  void check_one_rank(std::string_view command) const;
};

/// Flags that size the engine: batch, context, KV cache.
struct CapacityFlags {
  int max_num_seqs = 256;
  int max_num_batched_tokens = 8192;
  int64_t max_model_len = 0;
  double gpu_memory_utilization = 0.9;
  int64_t kv_cache_memory = 0;
  int64_t num_kv_blocks = 0;
  int block_size = 16;
  bool no_prefix_caching = false;

  void add_to(CLI::App& command);
  void apply(EngineOptions& options) const;
};

/// A config.json in place of a model directory, its linears assumed to have some share of zeros.
struct ConfigFlags {
  std::string config;
  std::optional<double> sparsity;

  /// `config_help` says what becomes of the config.
  void add_to(CLI::App& command, const std::string& config_help);
  bool given() const { return !config.empty(); }
  double assumed_sparsity() const;
  /// Throws `UsageError` unless one of -m and --config was given, and --sparsity with --config only.
  void check_source(const std::string& model) const;
  /// Random weights for the config, if there is one.
  void apply(EngineOptions& options) const;
};

/// Validators for CLI11: a number in [low, high] or (low, high], the latter as a float too, NaN excluded; a
/// whole number in [low, high]. Nothing but the number may be given. `range` is what the message calls legal.
CLI::Validator number_in(double low, double high, const std::string& range, bool low_exclusive = false);
CLI::Validator whole_number_in(int64_t low, int64_t high);
CLI::Validator not_empty();

/// The parts of `text` between each `by`, empty ones too: one more than there are separators.
std::vector<std::string_view> split(std::string_view text, char by);

/// Of a list like "8,16,32": each item must be legal to `item`, and none may be empty.
CLI::Validator list_of(CLI::Validator item);

/// Adds an option that takes a `list_of` items, or several. CLI11's own delimiter(',') drops empty items.
template <class T>
CLI::Option* add_list(CLI::App& command, const std::string& name, std::vector<T>& values,
                      const std::string& help, CLI::Validator item) {
  const auto take = [&values](const CLI::results_t& lists) {
    values.clear();
    for (const std::string& list : lists) {
      for (const std::string_view text : split(list, ',')) {
        if (T value; CLI::detail::lexical_cast(std::string(text), value)) {
          values.push_back(std::move(value));
        } else {
          return false;
        }
      }
    }
    return true;
  };
  const auto shown = [&values] { return fmt::format("{}", fmt::join(values, ",")); };
  return command.add_option(name, take, help, false, shown)
      ->type_name(CLI::detail::type_name<T>())
      ->expected(CLI::detail::expected_max_vector_size)
      ->check(list_of(std::move(item)));
}

/// For a path that a model is read from. Throws `Error` with the system's reason if it, or config.json in it,
/// cannot be looked up: a directory that may not be entered, a loop of links. Whether it is there is for
/// those to say who read it.
void check_reachable(const std::filesystem::path& path);

/// The whole of a file, or of stdin for "-". Throws `Error` naming the path. At most 1 GiB.
std::string read_text(const std::string& path);

/// Ids separated by white space, or one comma each with or without white space. Throws naming `what` and the
/// bad item: `UsageError` for a flag's value, `Error` for what a file holds.
enum class IdSource { flag, file };
std::vector<int32_t> parse_ids(std::string_view text, std::string_view what, IdSource source);

/// The tokenizer of a model directory, with the hints its config.json gives.
Tokenizer load_tokenizer(const std::filesystem::path& dir);

}  // namespace spinfer
