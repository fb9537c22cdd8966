#include "models/json_text.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <system_error>
#include <vector>

#include "kernels/check.h"

namespace spinfer {
namespace {

/// "line 3, column 14" of a byte position.
std::string place(std::string_view text, size_t position) {
  const std::string_view before = text.substr(0, std::min(position, text.size()));
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const size_t line_start = before.rfind('\n') == std::string_view::npos ? 0 : before.rfind('\n') + 1;
  return fmt::format("line {}, column {}", line, std::max<size_t>(1, before.size() - line_start));
}

/// Checks depth, number of values and keys while a document is read. Of bad JSON it says nothing.
class LimitCheck {
 public:
  using json = nlohmann::json;
  explicit LimitCheck(const std::string& source) : source_(source) {}

  bool null() { return value(); }
  bool boolean(bool) { return value(); }
  bool number_integer(json::number_integer_t) { return value(); }
  bool number_unsigned(json::number_unsigned_t) { return value(); }
  bool number_float(json::number_float_t, const std::string&) { return value(); }
  bool string(std::string&) { return value(); }
  bool binary(json::binary_t&) { return value(); }
  bool start_array(size_t) { return open(); }
  bool end_array() { return close(); }
  bool start_object(size_t) { return open(); }
  bool end_object() { return close(); }
  bool key(std::string& key) {
    check(keys_.back().insert(key).second, "{}: key \"{}\" appears twice", source_, printable(key));
    return value();
  }
  bool parse_error(size_t, const std::string&, const json::exception&) { return false; }

 private:
  bool value() {
    check(++values_ <= kMaxJsonValues, "{}: more than {} values", source_, kMaxJsonValues);
    return true;
  }
  bool open() {
    keys_.emplace_back();
    check(keys_.size() <= size_t{kMaxJsonDepth}, "{}: nested deeper than {} levels", source_, kMaxJsonDepth);
    return value();
  }
  bool close() {
    keys_.pop_back();
    return true;
  }

  const std::string& source_;
  int64_t values_ = 0;
  std::vector<std::set<std::string>> keys_;  ///< of the objects and arrays now open
};

}  // namespace

std::string printable(std::string_view text) {
  constexpr size_t kLongest = 120;
  std::string out;
  for (const char c : text.substr(0, kLongest)) out += c >= ' ' && c <= '~' ? c : '?';
  if (text.size() > kLongest) out += "...";
  return out;
}

std::string printable_value(const nlohmann::json& value) {
  if (value.is_string()) return '"' + printable(value.get_ref<const std::string&>()) + '"';
  if (value.is_structured()) return fmt::format("an {}", value.is_object() ? "object" : "array");
  return printable(value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace));
}

std::string absence(const std::filesystem::path& path, std::string_view what) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  return std::filesystem::status_known(status) ? fmt::format("no such {}", what)
                                               : "cannot be reached: " + error.message();
}

std::string read_text_file(const std::filesystem::path& path, int64_t max_bytes) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) fail("{}: {}", path.string(), absence(path, "file"));
  check(std::filesystem::is_regular_file(status), "{}: not a regular file", path.string());
  const auto size = std::filesystem::file_size(path, error);
  check(!error, "{}: {}", path.string(), error.message());
  check(size <= uint64_t(max_bytes), "{}: {} bytes; at most {} are accepted", path.string(), size, max_bytes);
  std::ifstream file(path, std::ios::binary);
  check(file.good(), "{}: cannot be opened for reading", path.string());
  std::string text(size, '\0');
  file.read(text.data(), std::streamsize(size));
  check(file.gcount() == std::streamsize(size), "{}: read {} of {} bytes", path.string(), file.gcount(),
        size);
  return text;
}

nlohmann::json parse_json(std::string_view text, const std::string& source) {
  using nlohmann::json;
  // To the parser a NUL is the end of the text, whatever follows.
  const size_t nul = text.find('\0');
  check(nul == std::string_view::npos, "{}: not valid JSON ({}: a NUL byte)", source, place(text, nul));
  // In a pass of its own: json::parse with a callback looks through all of a list again for each of its
  // objects.
  LimitCheck limits(source);
  json::sax_parse(text.begin(), text.end(), &limits);
  try {
    return json::parse(text.begin(), text.end());
  } catch (const json::parse_error& e) {
    fail("{}: not valid JSON ({})", source, place(text, e.byte));
  } catch (const json::exception&) {
    fail("{}: not valid JSON (a number out of range)", source);
  }
}

JsonFields::JsonFields(const nlohmann::json& object, std::string source)
    : object_(object), source_(std::move(source)) {
  check(object.is_object(), "{}: must be a JSON object, is {}", source_, printable_value(object));
}

const nlohmann::json* JsonFields::find(const char* name) const {
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

int64_t JsonFields::integer(const char* name, int64_t min, int64_t max,
                            std::optional<int64_t> fallback) const {
  const auto* value = find(name);
  if (!value) {
    check(fallback.has_value(), "{}: \"{}\" is missing; an integer from {} to {} is needed", source_, name,
          min, max);
    return *fallback;
  }
  const bool fits = value->is_number_unsigned() ? value->get<uint64_t>() <= uint64_t(INT64_MAX)
                                                : value->is_number_integer();
  check(fits && value->get<int64_t>() >= min && value->get<int64_t>() <= max,
        "{}: \"{}\" is {}; must be an integer from {} to {}", source_, name, printable_value(*value), min,
        max);
  return value->get<int64_t>();
}

double JsonFields::number(const char* name, double min, double max, std::optional<double> fallback) const {
  const auto* value = find(name);
  if (!value) {
    check(fallback.has_value(), "{}: \"{}\" is missing; a number from {} to {} is needed", source_, name, min,
          max);
    return *fallback;
  }
  const double number = value->is_number() ? value->get<double>() : std::nan("");
  check(number >= min && number <= max, "{}: \"{}\" is {}; must be a number from {} to {}", source_, name,
        printable_value(*value), min, max);
  return number;
}

bool JsonFields::boolean(const char* name, bool fallback) const {
  const auto* value = find(name);
  if (!value) return fallback;
  check(value->is_boolean(), "{}: \"{}\" is {}; must be true or false", source_, name,
        printable_value(*value));
  return value->get<bool>();
}

std::string JsonFields::string(const char* name, std::optional<std::string> fallback) const {
  const auto* value = find(name);
  if (!value) {
    check(fallback.has_value(), "{}: \"{}\" is missing; a string is needed", source_, name);
    return *fallback;
  }
  check(value->is_string(), "{}: \"{}\" is {}; must be a string", source_, name, printable_value(*value));
  return value->get<std::string>();
}

}  // namespace spinfer
