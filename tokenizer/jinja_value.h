// What Jinja expressions compute with: Python's values, as far as templates need them. Internal to the chat
// templates.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace spinfer::jinja {

struct Value;
struct Undefined {
  std::string name;  ///< what was not there, for messages
};
using None = std::nullptr_t;
using List = std::vector<Value>;
using Dict = std::vector<std::pair<std::string, Value>>;  ///< in order of insertion, keys distinct
struct Namespace {
  Dict values;
};
struct Function {
  std::string name;  ///< of a global function
};

/// Lists and dictionaries are shared, as in Python; only namespaces ever change.
struct Value {
  std::variant<Undefined, None, bool, int64_t, double, std::string, std::shared_ptr<const List>,
               std::shared_ptr<const Dict>, std::shared_ptr<Namespace>, Function>
      data;

  static Value list(List items) { return {std::make_shared<const List>(std::move(items))}; }
  static Value dict(Dict items) { return {std::make_shared<const Dict>(std::move(items))}; }

  const std::string* string() const { return std::get_if<std::string>(&data); }
  const List* list() const {
    const auto* held = std::get_if<std::shared_ptr<const List>>(&data);
    return held ? held->get() : nullptr;
  }
  const Dict* dict() const {
    const auto* held = std::get_if<std::shared_ptr<const Dict>>(&data);
    return held ? held->get() : nullptr;
  }
  bool undefined() const { return std::holds_alternative<Undefined>(data); }
  bool none() const { return std::holds_alternative<None>(data); }
  /// Numbers, true and false among them.
  bool number() const { return integral() || std::holds_alternative<double>(data); }
  bool integral() const {
    return std::holds_alternative<int64_t>(data) || std::holds_alternative<bool>(data);
  }
  int64_t integer() const {
    const auto* flag = std::get_if<bool>(&data);
    return flag ? int64_t{*flag} : std::get<int64_t>(data);
  }
  double decimal() const { return integral() ? double(integer()) : std::get<double>(data); }
};

const Value* find(const Dict& dict, std::string_view key);
bool truth(const Value& value);
/// Python's ==.
bool equal(const Value& a, const Value& b);
/// "string", "list", …, for messages.
const char* type_name(const Value& value);
/// Python's str() of a scalar, "" of undefined. Throws `ChatTemplateError` for lists and dictionaries.
std::string to_text(const Value& value, int line);
/// Python's json.dumps(value, ensure_ascii=False, indent=indent); indent < 0: on one line.
std::string to_json(const Value& value, int indent, int line);

// Those that take arguments get them by position, missing ones undefined. They throw `ChatTemplateError`, for
// unknown names and for more arguments than they know too (tokenizer/jinja_arguments.h).
Value apply_filter(const std::string& name, const Value& input, const List& arguments, int line);
bool apply_test(const std::string& name, const Value& input, const List& arguments, int line);
Value call_method(const Value& object, const std::string& name, const List& arguments, int line);
Value call_function(const std::string& name, const List& arguments, int line);
/// The global functions' names.
bool is_function(std::string_view name);

inline constexpr size_t kMaxTextBytes = size_t{32} << 20;  ///< of one string, and of the output

}  // namespace spinfer::jinja
