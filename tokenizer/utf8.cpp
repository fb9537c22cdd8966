#include "tokenizer/utf8.h"

#include <algorithm>
#include <cstdint>

namespace spinfer {
namespace {

void append_replacements(size_t bytes, InvalidBytes mode, std::string& out) {
  const size_t count = mode == InvalidBytes::kOnePerByte ? bytes : 1;
  for (size_t i = 0; i < count; ++i) out += kReplacementChar;
}

// Moves the well-formed part of `text` to `out`; returns how many bytes of an incomplete character are left.
size_t append_complete(std::string_view text, InvalidBytes mode, std::string& out) {
  while (!text.empty()) {
    const Utf8Char c = first_char(text);
    if (c.kind == Utf8Char::kIncomplete) return text.size();
    if (c.kind == Utf8Char::kValid) {
      out.append(text.substr(0, c.length));
    } else {
      append_replacements(c.length, mode, out);
    }
    text.remove_prefix(c.length);
  }
  return 0;
}

}  // namespace

Utf8Char first_char(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {Utf8Char::kValid, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Utf8Char::kInvalid, 1};
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range excludes overlong forms, surrogates and code points above U+10FFFF.
  const uint8_t second_min = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const uint8_t second_max = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Utf8Char::kIncomplete, i};
    const uint8_t low = i == 1 ? second_min : 0x80;
    const uint8_t high = i == 1 ? second_max : 0xBF;
    if (byte(i) < low || byte(i) > high) return {Utf8Char::kInvalid, i};
  }
  return {Utf8Char::kValid, length};
}

int64_t count_chars(std::string_view text) {
  return std::ranges::count_if(text, [](char c) { return (uint8_t(c) & 0xc0) != 0x80; });
}

bool is_valid_utf8(std::string_view text) {
  while (!text.empty()) {
    const Utf8Char c = first_char(text);
    if (c.kind != Utf8Char::kValid) return false;
    text.remove_prefix(c.length);
  }
  return true;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  if (append_complete(text, InvalidBytes::kOnePerSequence, out) > 0) out += kReplacementChar;
  return out;
}

void take_complete_chars(std::string& pending, std::string_view more, InvalidBytes mode, std::string& out) {
  pending += more;
  const size_t rest = append_complete(pending, mode, out);
  pending.erase(0, pending.size() - rest);
}

void flush_incomplete_char(std::string& pending, InvalidBytes mode, std::string& out) {
  if (!pending.empty()) append_replacements(pending.size(), mode, out);
  pending.clear();
}

}  // namespace spinfer
