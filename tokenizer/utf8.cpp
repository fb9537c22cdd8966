#include "tokenizer/utf8.h"

#include <algorithm>
#include <cstdint>
#include <iterator>

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

std::string_view last_char(std::string_view text) {
  size_t begin = text.size() - 1;
  while (begin > 0 && (uint8_t(text[begin]) & 0xc0) == 0x80) --begin;
  return text.substr(begin);
}

bool is_white_space(std::string_view character, WhiteSpace kind) {
  if (character.size() == 1) {
    const char c = character[0];
    return c == ' ' || (c >= '\t' && c <= '\r') || (kind == WhiteSpace::kPython && c >= 0x1C && c <= 0x1F);
  }
  // U+0085, U+00A0, U+1680, U+2028, U+2029, U+202F, U+205F, U+3000; U+2000 ... U+200A
  constexpr std::string_view kWide[] = {"\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80", "\xE2\x80\xA8",
                                        "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F", "\xE3\x80\x80"};
  if (std::ranges::find(kWide, character) != std::end(kWide)) return true;
  return character.size() == 3 && character.starts_with("\xE2\x80") && uint8_t(character[2]) <= 0x8A;
}

std::string_view strip_white_space(std::string_view text, bool left, bool right, WhiteSpace kind) {
  while (left && !text.empty()) {
    const std::string_view first = text.substr(0, first_char(text).length);
    if (!is_white_space(first, kind)) break;
    text.remove_prefix(first.size());
  }
  while (right && !text.empty() && is_white_space(last_char(text), kind))
    text.remove_suffix(last_char(text).size());
  return text;
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
