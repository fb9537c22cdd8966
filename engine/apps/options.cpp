#include "engine/apps/options.h"

#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <charconv>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <limits>
#include <memory>

#include "engine/tokenizer_hints.h"
#include "kernels/check.h"
#include "models/config.h"

namespace spinfer {
namespace {
constexpr double kAssumedSparsity = 0.6;  // of a config without weights
}

CLI::Validator number_in(double low, double high, const std::string& range, bool low_exclusive) {
  return CLI::Validator(
      [=](std::string& text) -> std::string {
        double value = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        const bool parsed = error == std::errc() && end == text.data() + text.size() && std::isfinite(value);
        // Some end as a float, in which the smallest doubles are 0.
        const bool above = low_exclusive ? float(value) > float(low) : value >= low;
        if (parsed && above && value <= high) return {};
        return fmt::format("'{}' is not a number in {}", text, range);
      },
      range);
}

CLI::Validator whole_number_in(int64_t low, int64_t high) {
  const std::string range = fmt::format("{}..{}", low, high);
  return CLI::Validator(
      [=](std::string& text) -> std::string {
        int64_t value = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        if (error == std::errc() && end == text.data() + text.size() && value >= low && value <= high)
          return {};
        return fmt::format("'{}' is not a whole number in {}", text, range);
      },
      range);
}

CLI::Validator not_empty() {
  return CLI::Validator(
      [](std::string& text) -> std::string { return text.empty() ? "must not be empty" : ""; }, "");
}

std::vector<std::string_view> split(std::string_view text, char by) {
  std::vector<std::string_view> parts;
  for (;;) {
    const size_t at = text.find(by);
    parts.push_back(text.substr(0, at));
    if (at == std::string_view::npos) return parts;
    text.remove_prefix(at + 1);
  }
}

CLI::Validator list_of(CLI::Validator item) {
  const std::string description = item.get_description();
  return CLI::Validator(
      [item = std::move(item)](std::string& list) -> std::string {
        for (const std::string_view text : split(list, ',')) {
          if (text.empty()) return fmt::format("'{}' has an empty item", list);
          if (std::string problem = item(std::string(text)); !problem.empty()) return problem;
        }
        return {};
      },
      description);
}

void check_reachable(const std::filesystem::path& path) {
  struct stat status {};
  const auto found = [&](const std::filesystem::path& file) {
    if (::stat(file.c_str(), &status) == 0) return true;
    check_system(errno == ENOENT, "{}: cannot be reached", file.string());
    return false;
  };
  if (found(path) && S_ISDIR(status.st_mode)) found(path / "config.json");
}

void CommonFlags::add_to(CLI::App& command, Model requirement, const FlagUses& uses) {
  if (requirement == Model::none) {
    command.add_option("-m,--model", model)->group("")->each([name = command.get_name()](const std::string&) {
      spdlog::warn("{} has no use for -m", name);
    });
  } else {
    command.add_option("-m,--model", model, "model directory (Hugging Face layout, dense or packed)")
        ->check(not_empty())
        ->each([](const std::string& path) {
          check_reachable(path);
          std::error_code error;
          check(!std::filesystem::is_regular_file(path, error), "{}: a file; -m takes a model's directory",
                path);
        })
        ->required(requirement == Model::required);
  }
  const auto group = [](CLI::Option* option, bool used) {
    return option->group(used ? "Common options" : "");  // shown after the command's own, or not at all
  };
  group(command.add_option("--device", device, "auto, cpu or cuda"), uses.device)
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  group(command.add_option("--tp,--tensor-parallel", tensor_parallel,
                           "tensor-parallel ranks (also typed -tp N)"),
        uses.ranks)
      ->check(whole_number_in(1, 64))
      ->capture_default_str();
  group(command.add_option("-t,--threads", threads, "CPU threads; 0 = all cores"), uses.threads)
      ->check(whole_number_in(0, 1024))
      ->capture_default_str();
  group(command.add_option("--seed", seed, "seed of random draws"), uses.seed)
      ->check(whole_number_in(0, std::numeric_limits<int64_t>::max()));
  group(command.add_option("--log-level", log_level, "trace, debug, info, warn, error or off"), true)
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error", "off"}))
      ->capture_default_str();
  group(command.add_flag("--json", json, "print one JSON document on stdout and nothing else"), true);
  group(command.add_flag("--deterministic", deterministic, "same tokens whatever else is in the batch"),
        uses.model_run);
  if (!uses.model_run) return;
  group(command.add_option(
            "--watchdog", watchdog,
            "several ranks: seconds of a step after which they count as hung; 0 = no limit (30 on GPUs)"),
        true)
      ->check(number_in(0, 86400, "0..86400"));
  group(command.add_flag("--enforce-eager", enforce_eager, "queue every op by itself: no CUDA graphs"), true);
}

void CommonFlags::check_one_rank(std::string_view command) const {
  if (tensor_parallel > 1)
    throw UsageError(fmt::format("--tp {}: {} takes one rank", tensor_parallel, command));
}

void CommonFlags::apply_log_level() const {
  spdlog::set_level(spdlog::level::from_str(log_level));
}

EngineOptions CommonFlags::engine_options() const {
  apply_log_level();
  EngineOptions options;
  options.model = model;
  options.device = device;
  options.tensor_parallel = tensor_parallel;
  options.watchdog_seconds = watchdog;
  options.threads = threads;
  options.deterministic = deterministic;
  if (enforce_eager) options.graphs = false;
  options.seed = seed.value_or(0);
  return options;
}

void CapacityFlags::add_to(CLI::App& command) {
  command.option_defaults()->group("Capacity options");
  const auto positive = whole_number_in(1, 1 << 20);
  command.add_option("--max-num-seqs", max_num_seqs, "requests running at once")
      ->check(positive)
      ->capture_default_str();
  command.add_option("--max-num-batched-tokens", max_num_batched_tokens, "tokens of one step")
      ->check(positive)
      ->capture_default_str();
  command.add_option("--max-model-len", max_model_len, "longest sequence; 0 = the model's")
      ->check(whole_number_in(0, 1 << 24));
  command.add_option("--gpu-memory-utilization", gpu_memory_utilization, "share of GPU memory to use")
      ->check(number_in(kLowestGpuMemoryUtilization, 1, fmt::format("[{}, 1]", kLowestGpuMemoryUtilization)))
      ->capture_default_str();
  command.add_option("--kv-cache-memory", kv_cache_memory, "bytes of KV cache; 0 = what is left")
      ->check(whole_number_in(0, int64_t{1} << 50));
  command.add_option("--num-kv-blocks", num_kv_blocks, "blocks of KV cache; 0 = from the bytes")
      ->check(whole_number_in(0, std::numeric_limits<int32_t>::max() / 16));
  command.add_option("--block-size", block_size, "tokens of a KV block")
      ->check(CLI::IsMember({16}))
      ->capture_default_str();
  command.add_flag("--no-prefix-caching", no_prefix_caching, "do not share blocks of equal prefixes");
  command.option_defaults()->group("Options");
}

void CapacityFlags::apply(EngineOptions& options) const {
  options.max_num_seqs = max_num_seqs;
  options.max_num_batched_tokens = max_num_batched_tokens;
  options.max_model_len = max_model_len;
  options.gpu_memory_utilization = gpu_memory_utilization;
  options.kv_cache_bytes = kv_cache_memory;
  options.num_kv_blocks = num_kv_blocks;
  options.block_size = block_size;
  options.prefix_caching = !no_prefix_caching;
}

void ConfigFlags::add_to(CLI::App& command, const std::string& config_help) {
  command.add_option("--config", config, config_help)->check(not_empty())->each(check_reachable);
  command.add_option("--sparsity", sparsity, "zeros assumed with --config")
      ->check(number_in(0, 1, "0..1"))
      ->default_str(fmt::format("{}", kAssumedSparsity));
}

double ConfigFlags::assumed_sparsity() const {
  return sparsity.value_or(kAssumedSparsity);
}

void ConfigFlags::check_source(const std::string& model) const {
  if (given() == !model.empty()) throw UsageError("give one of -m DIR and --config FILE");
  if (sparsity && !given()) throw UsageError("--sparsity: only with --config; a directory has its own");
}

void ConfigFlags::apply(EngineOptions& options) const {
  if (!given()) return;
  options.model = config;
  options.random_weights = assumed_sparsity();
}

std::string read_text(const std::string& path) {
  constexpr size_t kMaxBytes = size_t{1} << 30;
  const bool from_stdin = path == "-";
  const std::string name = from_stdin ? "stdin" : path;
  std::error_code ignored;
  check(from_stdin || !std::filesystem::is_directory(path, ignored), "{}: is a directory, not a file", name);
  const auto close = [from_stdin](std::FILE* f) {
    if (f && !from_stdin) std::fclose(f);
  };
  const std::unique_ptr<std::FILE, decltype(close)> file(from_stdin ? stdin : std::fopen(path.c_str(), "rb"),
                                                         close);
  check_system(file != nullptr, "{}: cannot be opened", name);
  std::string text;
  char buffer[1 << 16];
  while (const size_t count = std::fread(buffer, 1, sizeof(buffer), file.get())) {
    text.append(buffer, count);
    check(text.size() <= kMaxBytes, "{}: larger than 1 GiB", name);
  }
  check_system(!std::ferror(file.get()), "{}: reading failed", name);
  return text;
}

std::vector<int32_t> parse_ids(std::string_view text, std::string_view what, IdSource source) {
  constexpr std::string_view kSpace = " \t\r\n";
  const auto bad = [&](const std::string& problem) {
    const std::string message = fmt::format("{}: {}", what, problem);
    if (source == IdSource::flag) throw UsageError(message);
    throw Error(message);
  };
  std::vector<int32_t> ids;
  bool after_comma = false;
  for (size_t begin = text.find_first_not_of(kSpace); begin != std::string_view::npos;) {
    const size_t end = std::min(text.find_first_of(", \t\r\n", begin), text.size());
    const std::string_view item = text.substr(begin, end - begin);
    if (item.empty()) bad("a comma without a token id before it");
    int32_t id = 0;
    const auto [stop, error] = std::from_chars(item.data(), item.data() + item.size(), id);
    if (error != std::errc() || stop != item.data() + item.size() || id < 0) {
      bad(fmt::format("'{}' is not a token id (a whole number from 0 to {})", item.substr(0, 40),
                      std::numeric_limits<int32_t>::max()));
    }
    ids.push_back(id);
    begin = text.find_first_not_of(kSpace, end);
    after_comma = begin != std::string_view::npos && text[begin] == ',';
    if (after_comma) begin = text.find_first_not_of(kSpace, begin + 1);
  }
  if (after_comma) bad("a comma without a token id after it");
  return ids;
}

Tokenizer load_tokenizer(const std::filesystem::path& dir) {
  return Tokenizer::load(dir, tokenizer_hints(load_config(dir)));
}

}  // namespace spinfer
