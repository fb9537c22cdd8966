// Filters, tests, methods and global functions of chat templates.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <ctime>
#include <optional>

#include "tokenizer/chat_template.h"
#include "tokenizer/jinja_arguments.h"
#include "tokenizer/jinja_syntax.h"
#include "tokenizer/jinja_value.h"
#include "tokenizer/utf8.h"

namespace spinfer::jinja {
namespace {

constexpr size_t kMaxListItems = 100'000;
constexpr int64_t kMaxIndent = 16;

/// What a loop or a filter goes through: a list's items, a dictionary's keys, a string's characters.
List items_of(const Value& value, std::string_view what, int line) {
  if (value.list()) return *value.list();
  List items;
  if (value.dict()) {
    for (const auto& [key, item] : *value.dict()) items.push_back({key});
  } else if (value.string()) {
    const std::string& text = *value.string();
    for (size_t i = 0, next = 0; i < text.size(); i = next) {
      for (next = i + 1; next < text.size() && (uint8_t(text[next]) & 0xc0) == 0x80;) ++next;
      items.push_back({text.substr(i, next - i)});
      if (items.size() > kMaxListItems)
        fail_at(line, fmt::format("{}: more than {} items", what, kMaxListItems));
    }
  } else if (!value.undefined()) {
    fail_at(line, fmt::format("{} needs a list, has {}", what, type_name(value)));
  }
  return items;
}

/// The first `count` occurrences of `from`, all of them if it is negative.
std::string replaced(std::string_view text, std::string_view from, std::string_view to, int64_t count,
                     int line) {
  if (from.empty()) fail_at(line, "replace: nothing to look for");
  std::string out;
  for (;;) {
    const size_t at = count == 0 ? std::string_view::npos : text.find(from);
    out += text.substr(0, at);
    if (out.size() > kMaxTextBytes) fail_at(line, "replace: too much text");
    if (at == std::string_view::npos) return out;
    out += to;
    text.remove_prefix(at + from.size());
    if (count > 0) --count;
  }
}

/// ASCII only: what templates change the case of are roles.
std::string with_case(std::string text, bool upper, int line) {
  for (char& c : text) {
    if (uint8_t(c) >= 0x80) fail_at(line, "the case of letters beyond ASCII is not supported");
    if (upper && c >= 'a' && c <= 'z') c = char(c - 32);
    if (!upper && c >= 'A' && c <= 'Z') c = char(c + 32);
  }
  return text;
}

std::string capitalized(const std::string& text, int line) {
  std::string out = with_case(text, false, line);
  if (!out.empty() && out[0] >= 'a' && out[0] <= 'z') out[0] = char(out[0] - 32);
  return out;
}

bool is_small_letter(char c) {
  return c >= 'a' && c <= 'z';
}

/// Every word's first letter upper case; `of_word` says of lower-case text which characters a word goes on
/// behind.
std::string titled(std::string text, bool (*of_word)(char), int line) {
  text = with_case(std::move(text), false, line);
  bool inside = false;
  for (char& c : text) {
    const bool begins = !inside && is_small_letter(c);
    inside = of_word(c);
    if (begins) c = char(c - 32);
  }
  return text;
}
/// What a word of Jinja's filter `title` is made of: all but white space and -({[<, so that "it's" is "It's".
/// (Of Python's str.title(): letters.)
bool is_no_title_border(char c) {
  return std::string_view(" \t\n\v\f\r\x1c\x1d\x1e\x1f-({[<").find(c) == std::string_view::npos;
}

Value pairs_of(const Value& value, std::string_view what, int line) {
  if (value.undefined()) return Value::list({});
  if (!value.dict()) fail_at(line, fmt::format("{} needs a dictionary, has {}", what, type_name(value)));
  List pairs;
  for (const auto& [key, item] : *value.dict()) pairs.push_back(Value::list({{key}, item}));
  return Value::list(std::move(pairs));
}

Value joined(const List& items, const std::string& separator, int line) {
  std::string out;
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out += separator;
    out += to_text(items[i], line);
    if (out.size() > kMaxTextBytes) fail_at(line, "join: too much text");
  }
  return {out};
}

Value length(const Value& value, int line) {
  if (value.string()) return {count_chars(*value.string())};
  if (value.list()) return {int64_t(value.list()->size())};
  if (value.dict()) return {int64_t(value.dict()->size())};
  if (value.undefined()) return {int64_t{0}};
  fail_at(line, fmt::format("length of {}", type_name(value)));
}

int64_t whole_part(double number, int line) {
  if (!(std::abs(number) < 0x1p63)) fail_at(line, "int: the number is too large");
  return int64_t(number);
}

/// The number a text is, as Python's int and float read it; of a fraction the whole part.
std::optional<int64_t> integer_in(std::string_view written, int line) {
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  const std::string_view text = strip_white_space(written, true, true, WhiteSpace::kPython);
  std::string number;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool between_digits =
        i > 0 && i + 1 < text.size() && digit(text[i - 1]) && digit(text[i + 1]);  // 1_000
    if (text[i] != '_' || !between_digits) number += text[i];
  }
  if (number.starts_with('+') && !number.starts_with("+-")) number.erase(0, 1);
  const char* const end = number.data() + number.size();
  int64_t integer = 0;
  if (const auto read = std::from_chars(number.data(), end, integer); read.ptr == end) {
    if (read.ec == std::errc()) return integer;
    if (read.ec == std::errc::result_out_of_range) fail_at(line, "int: the number is too large");
  }
  double decimal = 0;
  const auto read = std::from_chars(number.data(), end, decimal);
  if (read.ec != std::errc() || read.ptr != end || !std::isfinite(decimal)) return {};
  return whole_part(decimal, line);
}

Value to_integer(const Value& value, const Value& otherwise, int line) {
  if (const auto* missing = std::get_if<Undefined>(&value.data))
    fail_at(line, fmt::format("'{}' is undefined", missing->name));
  std::optional<int64_t> number;
  if (value.integral()) {
    number = value.integer();
  } else if (value.number()) {
    if (!std::isnan(value.decimal())) number = whole_part(value.decimal(), line);
  } else if (value.string()) {
    number = integer_in(*value.string(), line);
  }
  if (number) return {*number};
  return otherwise.undefined() ? Value{int64_t{0}} : otherwise;
}

/// select and reject, by a test; selectattr and rejectattr, by a test of a member.
Value selected(const std::string& name, const Value& input, const List& arguments, int line) {
  const bool by_member = name.ends_with("attr");
  const bool wanted = name.starts_with("select");
  const size_t test = by_member ? 1 : 0;
  List out;
  for (const Value& item : items_of(input, name, line)) {
    Value subject = item;
    if (by_member) {
      const Value* member =
          item.dict() ? find(*item.dict(), text_of(argument(arguments, 0), name, line)) : nullptr;
      subject = member ? *member : Value{Undefined{"member"}};
    }
    const bool passes = arguments.size() <= test
                            ? truth(subject)
                            : apply_test(text_of(arguments[test], name, line), subject,
                                         List(arguments.begin() + long(test) + 1, arguments.end()), line);
    if (passes == wanted) out.push_back(item);
  }
  return Value::list(std::move(out));
}

Value mapped(const List& items, const List& arguments, int line) {
  List out;
  for (const Value& item : items)
    out.push_back(apply_filter(text_of(argument(arguments, 0), "map", line), item,
                               arguments.empty() ? List{} : List(arguments.begin() + 1, arguments.end()),
                               line));
  return Value::list(std::move(out));
}

/// Bytes until the first white space.
size_t word_size(std::string_view text) {
  size_t size = 0;
  while (size < text.size()) {
    const size_t next = first_char(text.substr(size)).length;
    if (is_white_space(text.substr(size, next), WhiteSpace::kPython)) break;
    size += next;
  }
  return size;
}

/// By white space without a separator. At most `most` cuts; negative: all.
Value split(std::string_view rest, const Value& separator, int64_t most, int line) {
  List parts;
  const auto push = [&](std::string_view part) {
    parts.push_back({std::string(part)});
    if (parts.size() > kMaxListItems) fail_at(line, "split: too many parts");
  };
  const auto cuts_left = [&] { return most < 0 || int64_t(parts.size()) < most; };
  if (separator.undefined() || separator.none()) {
    for (;;) {
      rest = strip_white_space(rest, true, false, WhiteSpace::kPython);
      if (rest.empty()) return Value::list(std::move(parts));
      const size_t size = cuts_left() ? word_size(rest) : rest.size();
      push(rest.substr(0, size));
      rest.remove_prefix(size);
    }
  }
  const std::string& by = text_of(separator, "split", line);
  if (by.empty()) fail_at(line, "split: the separator is empty");
  for (;;) {
    const size_t at = cuts_left() ? rest.find(by) : std::string_view::npos;
    push(rest.substr(0, at));
    if (at == std::string_view::npos) return Value::list(std::move(parts));
    rest.remove_prefix(at + by.size());
  }
}

struct TextPart {
  std::string_view text;
  int64_t first;  ///< which character of the whole it begins with
};

/// What the arguments `start` and `end` (the second and third) leave of a text: characters, counted from the
/// end where negative. None if they are the wrong way round, where Python finds nothing, not even "".
std::optional<TextPart> part_of(std::string_view text, const std::string& name, const List& arguments,
                                int line) {
  if (arguments.size() <= 1) return TextPart{text, 0};
  const int64_t count = count_chars(text);
  const auto bound = [&](size_t i, int64_t otherwise) {
    const int64_t at = integer_or(argument(arguments, i), otherwise, name, line);
    return at < 0 ? std::max<int64_t>(at + count, 0) : at;
  };
  const int64_t first = bound(1, 0), end = std::min(bound(2, count), count);
  if (first > end) return {};
  const auto skip = [](std::string_view from, int64_t characters) {
    for (; characters > 0 && !from.empty(); --characters) from.remove_prefix(first_char(from).length);
    return from;
  };
  const std::string_view begun = skip(text, first);
  return TextPart{begun.substr(0, begun.size() - skip(begun, end - first).size()), first};
}

/// startswith, endswith: of one string or any of a list.
bool affix_matches(std::string_view text, const Value& affix, bool at_end, int line) {
  if (affix.list()) {
    return std::ranges::any_of(*affix.list(),
                               [&](const Value& one) { return affix_matches(text, one, at_end, line); });
  }
  const std::string& part = text_of(affix, at_end ? "endswith" : "startswith", line);
  return at_end ? text.ends_with(part) : text.starts_with(part);
}

std::string strip_method(std::string_view text, const std::string& name, const List& arguments, int line) {
  const bool left = name != "rstrip", right = name != "lstrip";
  const Value& given = argument(arguments, 0);
  if (given.undefined() || given.none())
    return std::string(strip_white_space(text, left, right, WhiteSpace::kPython));
  const std::string& chars = text_of(given, name, line);
  const auto among = [&](std::string_view c) { return chars.find(c) != std::string::npos; };
  while (left && !text.empty() && among(text.substr(0, first_char(text).length)))
    text.remove_prefix(first_char(text).length);
  while (right && !text.empty() && among(last_char(text))) text.remove_suffix(last_char(text).size());
  return std::string(text);
}

Value string_method(const std::string& text, const std::string& name, const List& arguments, int line) {
  if (name == "strip" || name == "lstrip" || name == "rstrip")
    return {strip_method(text, name, arguments, line)};
  if (name == "startswith" || name == "endswith") {
    const auto part = part_of(text, name, arguments, line);
    return {part && affix_matches(part->text, argument(arguments, 0), name == "endswith", line)};
  }
  if (name == "upper" || name == "lower") return {with_case(text, name == "upper", line)};
  if (name == "capitalize") return {capitalized(text, line)};
  if (name == "title") return {titled(text, is_small_letter, line)};
  if (name == "replace") {
    return {replaced(text, text_of(argument(arguments, 0), name, line),
                     text_of(argument(arguments, 1), name, line),
                     integer_or(argument(arguments, 2), -1, name, line), line)};
  }
  if (name == "split")
    return split(text, argument(arguments, 0), integer_or(argument(arguments, 1), -1, name, line), line);
  if (name == "join") return joined(items_of(argument(arguments, 0), name, line), text, line);
  if (name == "find") {
    const std::string& sought = text_of(argument(arguments, 0), name, line);
    const auto part = part_of(text, name, arguments, line);
    const size_t at = part ? part->text.find(sought) : std::string_view::npos;
    return {at == std::string_view::npos ? int64_t{-1} : part->first + count_chars(part->text.substr(0, at))};
  }
  fail_at(line, fmt::format("method '{}' of a string is not supported", name));
}

std::string time_text(const std::string& format, int line) {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char buffer[512];
  const size_t size = std::strftime(buffer, sizeof(buffer), format.c_str(), &local);
  if (size == 0 && !format.empty()) fail_at(line, "strftime_now: the text is too long");
  return std::string(buffer, size);
}

Value range(const List& arguments, int line) {
  if (!std::ranges::all_of(arguments, &Value::integral)) fail_at(line, "range needs integers");
  const bool one = arguments.size() == 1;
  const int64_t start = one ? 0 : arguments[0].integer(), stop = arguments[one ? 0 : 1].integer();
  const int64_t step = arguments.size() == 3 ? arguments[2].integer() : 1;
  constexpr int64_t kFar = int64_t{1} << 40;
  if (step == 0 || std::max({std::abs(start / 2), std::abs(stop / 2), std::abs(step / 2)}) > kFar)
    fail_at(line, "range: a number is out of range");
  List items;
  for (int64_t i = start; step > 0 ? i < stop : i > stop; i += step) {
    items.push_back({i});
    if (items.size() > kMaxListItems) fail_at(line, fmt::format("range: more than {} items", kMaxListItems));
  }
  return Value::list(std::move(items));
}

bool is_in(const Value& item, const Value& container, int line) {
  if (container.string()) return container.string()->find(text_of(item, "in", line)) != std::string::npos;
  if (container.dict()) return item.string() && find(*container.dict(), *item.string());
  const List items = items_of(container, "in", line);
  return std::ranges::any_of(items, [&](const Value& other) { return equal(item, other); });
}

}  // namespace

Value apply_filter(const std::string& name, const Value& input, const List& arguments, int line) {
  check_arguments({Callee::filter, name}, arguments.size(), line);
  const auto text = [&] { return to_text(input, line); };
  if (name == "trim") return {strip_method(text(), "strip", arguments, line)};
  if (name == "length" || name == "count") return length(input, line);
  if (name == "upper" || name == "lower") return {with_case(text(), name == "upper", line)};
  if (name == "capitalize") return {capitalized(text(), line)};
  if (name == "title") return {titled(text(), is_no_title_border, line)};
  if (name == "string") return {text()};
  if (name == "safe") return input;
  if (name == "int") return to_integer(input, argument(arguments, 0), line);
  if (name == "replace") return string_method(text(), name, arguments, line);
  if (name == "default" || name == "d") {
    const bool missing = input.undefined() || (truth(argument(arguments, 1)) && !truth(input));
    if (!missing) return input;
    return arguments.empty() ? Value{std::string()} : arguments[0];
  }
  if (name == "tojson") {
    if (truth(argument(arguments, 0))) fail_at(line, "tojson with ensure_ascii is not supported");
    const Value& indent = argument(arguments, 1);
    if (indent.undefined() || indent.none()) return {to_json(input, -1, line)};
    const int64_t spaces = integer_or(indent, 0, "the indent of tojson", line);
    if (spaces > kMaxIndent) fail_at(line, fmt::format("tojson: an indent above {}", kMaxIndent));
    return {to_json(input, int(std::max<int64_t>(spaces, 0)), line)};
  }
  if (name == "items") {
    return pairs_of(input, name, line);
  } else if (name == "list") {
    return Value::list(items_of(input, name, line));
  } else if (name == "first" || name == "last") {
    const List items = items_of(input, name, line);
    if (items.empty()) return {Undefined{name}};
    return name == "first" ? items.front() : items.back();
  } else if (name == "reverse") {
    List items = items_of(input, name, line);
    std::ranges::reverse(items);
    return Value::list(std::move(items));
  } else if (name == "join") {
    const Value& by = argument(arguments, 0);
    return joined(items_of(input, name, line), by.undefined() ? "" : text_of(by, name, line), line);
  } else if (name == "select" || name == "reject" || name == "selectattr" || name == "rejectattr") {
    return selected(name, input, arguments, line);
  } else if (name == "map") {
    return mapped(items_of(input, name, line), arguments, line);
  }
  fail_at(line, fmt::format("filter '{}' is not supported", name));
}

bool apply_test(const std::string& name, const Value& input, const List& arguments, int line) {
  check_arguments({Callee::test, name}, arguments.size(), line);
  const Value& other = argument(arguments, 0);
  if (name == "defined") return !input.undefined();
  if (name == "undefined") return input.undefined();
  if (name == "none") return input.none();
  if (name == "string") return input.string() != nullptr;
  if (name == "boolean") return std::holds_alternative<bool>(input.data);
  if (name == "true" || name == "false") {
    const auto* flag = std::get_if<bool>(&input.data);
    return flag && *flag == (name == "true");
  }
  if (name == "integer") return std::holds_alternative<int64_t>(input.data);
  if (name == "float") return std::holds_alternative<double>(input.data);
  if (name == "number") return input.number();
  if (name == "mapping") return input.dict() != nullptr;
  if (name == "sequence" || name == "iterable") {
    return input.string() || input.list() || input.dict() || input.undefined();
  }
  if (name == "equalto" || name == "eq") return equal(input, other);
  if (name == "ne") return !equal(input, other);
  if (name == "in") return is_in(input, other, line);
  if (name == "even" || name == "odd") {
    if (!input.integral())
      fail_at(line, fmt::format("'{}' needs an integer, has {}", name, type_name(input)));
    return (input.integer() % 2 == 0) == (name == "even");
  }
  fail_at(line, fmt::format("test '{}' is not supported", name));
}

Value call_method(const Value& object, const std::string& name, const List& arguments, int line) {
  if (object.string()) {
    check_arguments({Callee::string_method, name}, arguments.size(), line);
    return string_method(*object.string(), name, arguments, line);
  }
  if (object.dict()) {
    check_arguments({Callee::dict_method, name}, arguments.size(), line);
    const Dict& dict = *object.dict();
    if (name == "items") return pairs_of(object, name, line);
    if (name == "get") {
      const Value* value = find(dict, text_of(argument(arguments, 0), name, line));
      return value ? *value : arguments.size() > 1 ? arguments[1] : Value{nullptr};
    }
    if (name == "keys" || name == "values") {
      List items;
      for (const auto& [key, value] : dict) items.push_back(name == "keys" ? Value{key} : value);
      return Value::list(std::move(items));
    }
  }
  if (const auto* missing = std::get_if<Undefined>(&object.data))
    fail_at(line, fmt::format("'{}' is undefined", missing->name));
  fail_at(line, fmt::format("method '{}' of {} is not supported", name, type_name(object)));
}

bool is_function(std::string_view name) {
  return name == "raise_exception" || name == "range" || name == "strftime_now";
}

Value call_function(const std::string& name, const List& arguments, int line) {
  check_arguments({Callee::function, name}, arguments.size(), line);
  if (name == "range") return range(arguments, line);
  if (name == "strftime_now") return {time_text(text_of(argument(arguments, 0), name, line), line)};
  if (name == "raise_exception") {
    std::string message = to_text(argument(arguments, 0), line);
    std::ranges::replace_if(
        message, [](char c) { return uint8_t(c) < 0x20; }, ' ');
    throw ChatTemplateError("the chat template refuses this conversation: " + message.substr(0, 500));
  }
  fail_at(line, fmt::format("function '{}' is not supported", name));
}

}  // namespace spinfer::jinja
