#include "engine/apps/workload.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <optional>
#include <random>

#include "engine/apps/options.h"
#include "kernels/check.h"

namespace spinfer {
namespace {

constexpr int kDefaultPrompts = 200;
constexpr int kMostTokens = 1 << 20;

template <class T>
std::optional<T> number(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// A written moment, read from left to right. What is not as it should be is remembered in `good`.
struct TimeText {
  std::string_view rest;
  bool good = true;

  size_t digits() const { return std::min(rest.find_first_not_of("0123456789"), rest.size()); }

  int field(size_t width, int least, int most) {
    const int value = digits() >= width ? number<int>(rest.substr(0, width)).value_or(-1) : -1;
    good = good && value >= least && value <= most;
    rest.remove_prefix(std::min(width, rest.size()));
    return value;
  }

  bool skip(std::string_view one_of) {
    const bool found = !rest.empty() && one_of.find(rest[0]) != std::string_view::npos;
    if (found) rest.remove_prefix(1);
    return found;
  }

  void need(std::string_view one_of) { good = skip(one_of) && good; }

  /// ".6805900", or nothing.
  double fraction() {
    if (!skip(".")) return 0;
    const size_t count = digits();
    const auto value = number<double>(fmt::format("0.{}", rest.substr(0, count)));
    good = good && count > 0 && value;
    rest.remove_prefix(count);
    return value.value_or(0);
  }

  /// Seconds east of UTC: "+01:00", "Z" or nothing.
  int offset() {
    if (rest.empty() || skip("Z")) return 0;
    const int sign = rest[0] == '-' ? -1 : 1;
    need("+-");
    const int hours = field(2, 0, 23);
    need(":");
    return sign * (hours * 3600 + field(2, 0, 59) * 60);
  }
};

/// Seconds since some fixed moment.
std::optional<double> time_of(std::string_view text) {
  if (const auto seconds = number<double>(text)) return seconds;
  TimeText time{text};
  const int year = time.field(4, 0, 9999);
  time.need("-");
  const int month = time.field(2, 1, 12);
  time.need("-");
  const int day = time.field(2, 1, 31);
  time.need(" T");
  const int hour = time.field(2, 0, 23);
  time.need(":");
  const int minute = time.field(2, 0, 59);
  time.need(":");
  const int second = time.field(2, 0, 59);
  const double fraction = time.fraction();
  const int offset = time.offset();
  if (!time.good || !time.rest.empty()) return std::nullopt;
  const std::chrono::year_month_day date{std::chrono::year(year), std::chrono::month(unsigned(month)),
                                         std::chrono::day(unsigned(day))};
  if (!date.ok()) return std::nullopt;
  const auto days = std::chrono::sys_days(date).time_since_epoch().count();
  return double(days) * 86400 + (hour * 3600 + minute * 60 + second - offset) + fraction;
}

void set_arrivals(std::vector<WorkItem>& items, const std::string& rate, uint64_t seed) {
  if (rate == "trace") return;
  std::mt19937_64 random(seed);
  double now = 0;
  for (WorkItem& item : items) {
    item.arrival = now;
    if (rate != "inf") now += std::exponential_distribution<double>(*number<double>(rate))(random);
  }
}

}  // namespace

void WorkloadFlags::add_to(CLI::App& command) {
  const auto count = whole_number_in(1, kMostTokens);
  command.add_option("--num-prompts", num_prompts, "requests; 0 = 200, or the whole trace")
      ->check(whole_number_in(0, 1 << 24))
      ->capture_default_str();
  command.add_option("--input-len", input_len, "prompt tokens of each request")
      ->check(count)
      ->capture_default_str();
  command.add_option("--output-len", output_len, "new tokens of each request")
      ->check(count)
      ->capture_default_str();
  command
      .add_option(
          "--trace", trace,
          "CSV with TIMESTAMP, ContextTokens and GeneratedTokens: lengths (and with --request-rate trace "
          "times) of the requests")
      ->check(not_empty());
  command.add_flag("--samples", samples, "list every request's figures in the JSON too");
}

CLI::Validator request_rate() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        const auto value = number<double>(text);
        if (text == "inf" || text == "trace" || (value && std::isfinite(*value) && *value > 0)) return {};
        return fmt::format("'{}' is neither a number of requests a second, inf nor trace", text);
      },
      "RATE");
}

std::vector<WorkItem> parse_trace(const std::string& text, const std::string& name) {
  std::vector<WorkItem> items;
  std::optional<size_t> time_column, input_column, output_column;
  size_t line_number = 0;
  std::string_view lines = text;
  if (lines.starts_with("\xef\xbb\xbf")) lines.remove_prefix(3);  // a byte order mark
  for (std::string_view line : split(lines, '\n')) {
    if (line.ends_with('\r')) line.remove_suffix(1);
    ++line_number;
    if (line.empty()) continue;
    const std::vector<std::string_view> cells = split(line, ',');
    if (!time_column) {
      for (size_t i = 0; i < cells.size(); ++i) {
        if (cells[i] == "TIMESTAMP") time_column = i;
        if (cells[i] == "ContextTokens") input_column = i;
        if (cells[i] == "GeneratedTokens") output_column = i;
      }
      check(time_column && input_column && output_column,
            "{}: the first line must name the columns TIMESTAMP, ContextTokens and GeneratedTokens", name);
      continue;
    }
    check(cells.size() > std::max({*time_column, *input_column, *output_column}), "{} line {}: too few cells",
          name, line_number);
    const auto time = time_of(cells[*time_column]);
    const auto input = number<int>(cells[*input_column]), output = number<int>(cells[*output_column]);
    check(time && std::isfinite(*time) && input && *input >= 0 && *input <= kMostTokens && output &&
              *output >= 0 && *output <= kMostTokens,
          "{} line {}: needs a time and two numbers of tokens from 0 to {}", name, line_number, kMostTokens);
    items.push_back({*time, std::max(1, *input), std::max(1, *output)});
  }
  check(!items.empty(), "{}: holds no requests", name);
  std::ranges::stable_sort(items, {}, &WorkItem::arrival);
  const double first = items.front().arrival;
  for (WorkItem& item : items) item.arrival -= first;
  return items;
}

std::vector<WorkItem> make_workload(const WorkloadFlags& flags, const std::string& rate, uint64_t seed) {
  std::vector<WorkItem> items;
  if (flags.trace.empty()) {
    if (rate == "trace") throw UsageError("--request-rate trace: needs --trace FILE.csv");
    items.assign(size_t(flags.num_prompts > 0 ? flags.num_prompts : kDefaultPrompts),
                 {0, flags.input_len, flags.output_len});
  } else {
    items = parse_trace(read_text(flags.trace), flags.trace);
    if (flags.num_prompts > 0 && size_t(flags.num_prompts) < items.size())
      items.resize(size_t(flags.num_prompts));
  }
  set_arrivals(items, rate, seed);
  return items;
}

int64_t cut_to_model(std::vector<WorkItem>& items, int64_t max_model_len) {
  const int most = int(std::min<int64_t>(max_model_len, 2 * kMostTokens));
  int64_t cut = 0;
  for (WorkItem& item : items) {
    cut += item.input_tokens + item.output_tokens > most;
    item.output_tokens = std::min(item.output_tokens, most - 1);
    item.input_tokens = std::min(item.input_tokens, most - item.output_tokens);
  }
  return cut;
}

}  // namespace spinfer
