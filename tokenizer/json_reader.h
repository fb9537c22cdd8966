// Reading untrusted JSON: bounded nesting and size, typed members, errors that name the file and the member.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "tokenizer/file_set.h"

namespace spinfer {

/// Parses `file`. Throws std::runtime_error naming the file: not JSON, not an object, nested deeper than 64
/// levels or with more than 8 million values (a value costs many times its text in memory; real files have
/// below 2 million).
nlohmann::json parse_json_object(const TokenizerFile& file);

/// A JSON object with the file and the place it came from. The JSON value must outlive it.
class JsonObject {
 public:
  JsonObject(const TokenizerFile& file, std::string where, const nlohmann::json& value);

  /// nullptr if absent or null.
  const nlohmann::json* find(std::string_view key) const;
  /// The typed getters throw naming file and member if the type is wrong or, without a default, if it is
  /// absent.
  const nlohmann::json& require(std::string_view key) const;
  JsonObject object(std::string_view key) const;
  const nlohmann::json& array(std::string_view key) const;
  std::string string(std::string_view key) const;
  std::string string_or(std::string_view key, std::string_view otherwise) const;
  std::optional<bool> boolean(std::string_view key) const;
  int64_t integer(std::string_view key) const;

  const nlohmann::json& value() const { return *value_; }
  const TokenizerFile& file() const { return *file_; }
  /// "<where>.<key>", for messages and nested objects.
  std::string place(std::string_view key) const;
  [[noreturn]] void fail(std::string_view problem) const;  ///< "<path>: <where>: <problem>"

 private:
  const TokenizerFile* file_;
  std::string where_;
  const nlohmann::json* value_;
};

/// `value` as an integer. Throws naming file and place if it is none or does not fit.
int64_t json_integer(const TokenizerFile& file, std::string_view place, const nlohmann::json& value);

}  // namespace spinfer
