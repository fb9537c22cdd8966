#include "tokenizer/jinja_value.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "tokenizer/jinja_syntax.h"

namespace spinfer::jinja {
namespace {

/// Python's repr of a float: the shortest digits that read back the same, with ".0" where it looks whole.
std::string decimal_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  const bool plain = value == 0 || (std::abs(value) >= 1e-4 && std::abs(value) < 1e16);
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value,
                                 plain ? std::chars_format::fixed : std::chars_format::scientific);
  std::string text(buffer, end.ptr);
  if (plain && text.find('.') == std::string::npos) text += ".0";
  return text;
}

void append_json_string(std::string_view text, std::string& out) {
  out += '"';
  for (const char c : text) {
    constexpr std::string_view kEscaped = "\"\\\n\r\t\f\b", kAs = "\"\\nrtfb";
    if (const size_t at = kEscaped.find(c); at != std::string_view::npos) {
      out += '\\';
      out += kAs[at];
    } else if (uint8_t(c) < 0x20) {
      out += fmt::format("\\u{:04x}", uint8_t(c));
    } else {
      out += c;
    }
  }
  out += '"';
}

class JsonWriter {
 public:
  JsonWriter(int indent, int line) : indent_(indent), line_(line) {}

  void write(const Value& value, int level) {
    if (out_.size() > kMaxTextBytes) fail_at(line_, "tojson: too much text");
    if (level > 100) fail_at(line_, "tojson: nested deeper than 100 levels");
    if (value.none()) {
      out_ += "null";
    } else if (const auto* flag = std::get_if<bool>(&value.data)) {
      out_ += *flag ? "true" : "false";
    } else if (value.number()) {
      out_ += to_text(value, line_);
    } else if (value.string()) {
      append_json_string(*value.string(), out_);
    } else if (value.list()) {
      sequence('[', ']', value.list()->size(), level,
               [&](size_t i) { write((*value.list())[i], level + 1); });
    } else if (value.dict()) {
      sequence('{', '}', value.dict()->size(), level, [&](size_t i) {
        const auto& [key, item] = (*value.dict())[i];
        append_json_string(key, out_);
        out_ += ": ";
        write(item, level + 1);
      });
    } else {
      fail_at(line_, fmt::format("tojson of {}", type_name(value)));
    }
  }
  std::string take() { return std::move(out_); }

 private:
  template <class F>
  void sequence(char open, char close, size_t count, int level, F&& item) {
    out_ += open;
    for (size_t i = 0; i < count; ++i) {
      if (i > 0) out_ += indent_ < 0 ? ", " : ",";
      new_line(level + 1);
      item(i);
    }
    if (count > 0) new_line(level);
    out_ += close;
  }
  void new_line(int level) {
    if (indent_ < 0) return;
    out_ += '\n';
    out_.append(size_t(indent_) * size_t(level), ' ');
  }

  int indent_, line_;
  std::string out_;
};

}  // namespace

const Value* find(const Dict& dict, std::string_view key) {
  const auto entry = std::ranges::find(dict, key, &Dict::value_type::first);
  return entry == dict.end() ? nullptr : &entry->second;
}

bool truth(const Value& value) {
  if (value.undefined() || value.none()) return false;
  if (value.number()) return value.decimal() != 0;
  if (value.string()) return !value.string()->empty();
  if (value.list()) return !value.list()->empty();
  if (value.dict()) return !value.dict()->empty();
  return true;
}

bool equal(const Value& a, const Value& b) {
  if (a.number() && b.number())
    return a.integral() && b.integral() ? a.integer() == b.integer() : a.decimal() == b.decimal();
  if (a.string() && b.string()) return *a.string() == *b.string();
  if (a.list() && b.list()) return std::ranges::equal(*a.list(), *b.list(), equal);
  if (a.dict() && b.dict()) {
    return a.dict()->size() == b.dict()->size() && std::ranges::all_of(*a.dict(), [&](const auto& entry) {
             const Value* other = find(*b.dict(), entry.first);
             return other && equal(entry.second, *other);
           });
  }
  return (a.none() && b.none()) || (a.undefined() && b.undefined());
}

const char* type_name(const Value& value) {
  constexpr const char* kNames[] = {"an undefined value", "none",      "a boolean", "an integer",
                                    "a number",           "a string",  "a list",    "a dictionary",
                                    "a namespace",        "a function"};
  return kNames[value.data.index()];
}

std::string to_text(const Value& value, int line) {
  if (value.undefined()) return "";
  if (value.none()) return "None";
  if (const auto* flag = std::get_if<bool>(&value.data)) return *flag ? "True" : "False";
  if (value.integral()) return std::to_string(value.integer());
  if (value.number()) return decimal_text(value.decimal());
  if (value.string()) return *value.string();
  fail_at(line, fmt::format("{} as text is not supported", type_name(value)));
}

std::string to_json(const Value& value, int indent, int line) {
  JsonWriter writer(indent, line);
  writer.write(value, 0);
  return writer.take();
}

}  // namespace spinfer::jinja
