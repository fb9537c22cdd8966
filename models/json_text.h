// Reading untrusted JSON: bounded size, depth and number of values, no duplicate keys, fields with ranges.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace spinfer {

inline constexpr int64_t kMaxConfigBytes = int64_t{4} << 20;  ///< config.json; real ones have a few kB
inline constexpr int64_t kMaxIndexBytes = int64_t{16}
                                          << 20;  ///< model.safetensors.index.json; 70B models: 70 kB
inline constexpr int kMaxJsonDepth = 32;
inline constexpr int64_t kMaxJsonValues = 1'000'000;

/// `text` fit for one line of an error message: control and non-ASCII bytes become '?', long text is cut.
std::string printable(std::string_view text);

/// Why nothing was found at `path`: "no such " and `what`, or "cannot be reached" and the system's reason (a
/// directory on the way may not be entered, links in a circle).
std::string absence(const std::filesystem::path& path, std::string_view what);

/// The whole of a regular file of at most `max_bytes`. Throws `Error` naming the file.
std::string read_text_file(const std::filesystem::path& path, int64_t max_bytes);

/// Throws `Error`, beginning with `source` and naming line and column, unless `text` is one JSON document
/// within kMaxJsonDepth and kMaxJsonValues whose objects hold no key twice.
nlohmann::json parse_json(std::string_view text, const std::string& source);

/// Typed access to the fields of one JSON object. A field that is absent or null takes its default; without a
/// default that is an error. Errors begin with `source` and name the field, its value and what is legal.
class JsonFields {
 public:
  /// `object` must outlive this. Throws `Error` if it is not an object.
  JsonFields(const nlohmann::json& object, std::string source);

  bool has(const char* name) const { return find(name) != nullptr; }
  int64_t integer(const char* name, int64_t min, int64_t max, std::optional<int64_t> fallback = {}) const;
  /// Finite numbers only.
  double number(const char* name, double min, double max, std::optional<double> fallback = {}) const;
  bool boolean(const char* name, bool fallback) const;
  std::string string(const char* name, std::optional<std::string> fallback = {}) const;
  /// Null if the field is absent or null.
  const nlohmann::json* find(const char* name) const;
  const std::string& source() const { return source_; }

 private:
  const nlohmann::json& object_;
  std::string source_;
};

/// A JSON value for an error message: short, one line.
std::string printable_value(const nlohmann::json& value);

}  // namespace spinfer
