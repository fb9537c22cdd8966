#include "tokenizer/jinja_arguments.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "tokenizer/jinja_syntax.h"

namespace spinfer::jinja {
namespace {

constexpr size_t kAny = size_t(-1);

struct Signature {
  std::string_view name;
  size_t least = 0, most = 0;      ///< how many arguments
  std::string_view names[3] = {};  ///< of the first ones, where they can be given by name
};

// Jinja's and Python's, without the arguments that are not supported.
constexpr Signature kFilters[] = {
    {"trim", 0, 1, {"chars"}},
    {"length"},
    {"count"},
    {"upper"},
    {"lower"},
    {"capitalize"},
    {"title"},
    {"string"},
    {"safe"},
    {"int", 0, 1, {"default"}},
    {"replace", 2, 3, {"old", "new", "count"}},
    {"default", 0, 2, {"default_value", "boolean"}},
    {"d", 0, 2, {"default_value", "boolean"}},
    {"tojson", 0, 2, {"ensure_ascii", "indent"}},
    {"items"},
    {"list"},
    {"first"},
    {"last"},
    {"reverse"},
    {"join", 0, 1, {"d"}},
    {"select", 0, kAny},
    {"reject", 0, kAny},
    {"selectattr", 1, kAny},
    {"rejectattr", 1, kAny},
    {"map", 1, kAny},
};
constexpr Signature kTests[] = {
    {"defined"},  {"undefined"}, {"none"},     {"string"},  {"boolean"},  {"true"},     {"false"},
    {"integer"},  {"float"},     {"number"},   {"mapping"}, {"sequence"}, {"iterable"}, {"equalto", 1, 1},
    {"eq", 1, 1}, {"ne", 1, 1},  {"in", 1, 1}, {"even"},    {"odd"},
};
constexpr Signature kStringMethods[] = {
    {"strip", 0, 1},
    {"lstrip", 0, 1},
    {"rstrip", 0, 1},
    {"startswith", 1, 3},
    {"endswith", 1, 3},
    {"upper"},
    {"lower"},
    {"capitalize"},
    {"title"},
    {"replace", 2, 3},
    {"split", 0, 2, {"sep", "maxsplit"}},
    {"join", 1, 1},
    {"find", 1, 3},
};
constexpr Signature kDictMethods[] = {{"items"}, {"keys"}, {"values"}, {"get", 1, 2}};
constexpr Signature kFunctions[] = {
    {"range", 1, 3}, {"strftime_now", 1, 1, {"format"}}, {"raise_exception", 1, 1, {"message"}}};

std::span<const Signature> signatures(Callee::Kind kind) {
  switch (kind) {
    case Callee::filter:
      return kFilters;
    case Callee::test:
      return kTests;
    case Callee::string_method:
      return kStringMethods;
    case Callee::dict_method:
      return kDictMethods;
    case Callee::function:
      return kFunctions;
  }
  return {};
}

const Signature* find_signature(const Callee& callee) {
  const auto all = signatures(callee.kind);
  const auto found = std::ranges::find(all, callee.name, &Signature::name);
  return found == all.end() ? nullptr : &*found;
}

std::string in_words(const Callee& callee) {
  constexpr const char* kBefore[] = {"filter", "test", "method", "method", "function"};
  constexpr const char* kAfter[] = {"", "", " of a string", " of a dictionary", ""};
  return fmt::format("{} '{}'{}", kBefore[callee.kind], callee.name, kAfter[callee.kind]);
}

}  // namespace

void check_arguments(const Callee& callee, size_t count, int line) {
  const Signature* signature = find_signature(callee);
  if (!signature) fail_at(line, in_words(callee) + " is not supported");
  if (count < signature->least || count > signature->most) {
    const bool many = count > signature->most;
    fail_at(line, fmt::format("{} with {} argument{} is not supported, {} {}", in_words(callee), count,
                              count == 1 ? "" : "s", many ? "at most" : "at least",
                              many ? signature->most : signature->least));
  }
}

std::optional<size_t> argument_position(const Callee& callee, std::string_view name) {
  const Signature* signature = find_signature(callee);
  if (!signature) return {};
  const auto found = std::ranges::find(signature->names, name);
  if (name.empty() || found == std::end(signature->names)) return {};
  return size_t(found - std::begin(signature->names));
}

const Value& argument(const List& arguments, size_t i) {
  static const Value kMissing{Undefined{"argument"}};
  return i < arguments.size() ? arguments[i] : kMissing;
}

const std::string& text_of(const Value& value, std::string_view what, int line) {
  if (!value.string()) fail_at(line, fmt::format("{} needs a string, has {}", what, type_name(value)));
  return *value.string();
}

int64_t integer_or(const Value& value, int64_t otherwise, std::string_view what, int line) {
  if (value.undefined() || value.none()) return otherwise;
  if (!value.integral()) fail_at(line, fmt::format("{} needs an integer, has {}", what, type_name(value)));
  return value.integer();
}

}  // namespace spinfer::jinja
