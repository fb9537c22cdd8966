// What filters, tests, methods and functions of chat templates take. Internal to the chat templates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "tokenizer/jinja_value.h"

namespace spinfer::jinja {

/// What a template calls.
struct Callee {
  enum Kind { filter, test, string_method, dict_method, function } kind;
  std::string_view name;
};

/// Throws `ChatTemplateError` if there is no such callee or it does not take `count` arguments: one that had
/// no effect would give another prompt than Hugging Face's.
void check_arguments(const Callee& callee, size_t count, int line);

/// The position of the argument that can be given as `name=…`; none if there is no such.
std::optional<size_t> argument_position(const Callee& callee, std::string_view name);

/// Undefined where there are not so many.
const Value& argument(const List& arguments, size_t i);
/// `value` as a string; throws naming `what` if it is none.
const std::string& text_of(const Value& value, std::string_view what, int line);
/// An integer argument, `otherwise` where it is missing or none; throws naming `what` for other types.
int64_t integer_or(const Value& value, int64_t otherwise, std::string_view what, int line);

}  // namespace spinfer::jinja
