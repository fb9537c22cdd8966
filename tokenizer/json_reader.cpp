#include "tokenizer/json_reader.h"

#include <fmt/format.h>

#include <limits>

namespace spinfer {

using nlohmann::json;

namespace {

constexpr int kMaxDepth = 64;
constexpr size_t kMaxValues = 8'000'000;

// Counts brackets and commas outside strings: cheap, and before the parser allocates anything.
void check_extent(const TokenizerFile& file) {
  int depth = 0;
  size_t values = 0;
  bool in_string = false;
  for (size_t i = 0; i < file.content.size(); ++i) {
    const char c = file.content[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
      continue;
    }
    in_string = c == '"';
    if (c == '{' || c == '[') ++depth;
    if (c == '}' || c == ']') --depth;
    if (c == ',' || c == '{' || c == '[') ++values;
    if (depth > kMaxDepth) fail_file(file.path, fmt::format("is nested deeper than {} levels", kMaxDepth));
    if (values > kMaxValues) fail_file(file.path, fmt::format("has more than {} values", kMaxValues));
  }
}

}  // namespace

json parse_json_object(const TokenizerFile& file) {
  if (file.content.empty()) fail_file(file.path, "is empty");
  // To the parser a NUL is the end of the text, whatever follows.
  if (file.content.find('\0') != std::string::npos) fail_file(file.path, "is not valid JSON: a NUL byte");
  check_extent(file);
  json value;
  try {
    value = json::parse(file.content);
  } catch (const json::exception& e) {
    fail_file(file.path, fmt::format("is not valid JSON: {}", e.what()));
  }
  if (!value.is_object())
    fail_file(file.path, fmt::format("must be a JSON object, is {}", value.type_name()));
  return value;
}

JsonObject::JsonObject(const TokenizerFile& file, std::string where, const json& value)
    : file_(&file), where_(std::move(where)), value_(&value) {
  if (!value.is_object()) fail(fmt::format("must be an object, is {}", value.type_name()));
}

void JsonObject::fail(std::string_view problem) const {
  fail_file(file_->path, where_.empty() ? std::string(problem) : fmt::format("{}: {}", where_, problem));
}

std::string JsonObject::place(std::string_view key) const {
  return where_.empty() ? std::string(key) : fmt::format("{}.{}", where_, key);
}

const json* JsonObject::find(std::string_view key) const {
  const auto it = value_->find(key);
  return it == value_->end() || it->is_null() ? nullptr : &*it;
}

const json& JsonObject::require(std::string_view key) const {
  const json* value = find(key);
  if (value == nullptr) fail(fmt::format("'{}' is missing", key));
  return *value;
}

JsonObject JsonObject::object(std::string_view key) const {
  return {*file_, place(key), require(key)};
}

const json& JsonObject::array(std::string_view key) const {
  const json& value = require(key);
  if (!value.is_array()) fail(fmt::format("'{}' must be an array, is {}", key, value.type_name()));
  return value;
}

std::string JsonObject::string(std::string_view key) const {
  const json& value = require(key);
  if (!value.is_string()) fail(fmt::format("'{}' must be a string, is {}", key, value.type_name()));
  return value.get<std::string>();
}

std::string JsonObject::string_or(std::string_view key, std::string_view otherwise) const {
  return find(key) == nullptr ? std::string(otherwise) : string(key);
}

std::optional<bool> JsonObject::boolean(std::string_view key) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) fail(fmt::format("'{}' must be true or false, is {}", key, value->type_name()));
  return value->get<bool>();
}

int64_t JsonObject::integer(std::string_view key) const {
  return json_integer(*file_, place(key), require(key));
}

int64_t json_integer(const TokenizerFile& file, std::string_view place, const json& value) {
  if (!value.is_number_integer()) {
    fail_file(file.path, fmt::format("{}: must be an integer, is {}", place, value.type_name()));
  }
  if (value.is_number_unsigned() && value.get<uint64_t>() > std::numeric_limits<int64_t>::max()) {
    fail_file(file.path, fmt::format("{}: {} is too large", place, value.get<uint64_t>()));
  }
  return value.get<int64_t>();
}

}  // namespace spinfer
