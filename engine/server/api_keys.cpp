#include "engine/server/api_keys.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <optional>

#include "kernels/check.h"
#include "models/json_text.h"

namespace spinfer {
namespace {

constexpr size_t kMaxKeyBytes = 256;
constexpr int64_t kMaxFileBytes = 1 << 20;

/// All 256 bytes are compared whatever the keys hold, and nothing branches on them.
bool equal_in_constant_time(std::string_view a, std::string_view b) {
  std::array<char, kMaxKeyBytes> left{}, right{};
  a.copy(left.data(), left.size());
  b.copy(right.data(), right.size());
  volatile unsigned difference = unsigned(a.size() ^ b.size());
  for (size_t i = 0; i < kMaxKeyBytes; ++i)
    difference = difference | unsigned(uint8_t(left[i]) ^ uint8_t(right[i]));
  return difference == 0;
}

std::optional<std::string> base64_decoded(std::string_view text) {
  while (text.ends_with('=')) text.remove_suffix(1);
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const size_t digit = kDigits.find(c);
    if (digit == std::string_view::npos) return std::nullopt;
    bits = bits << 6 | uint32_t(digit);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    bytes += char(bits >> count & 0xff);
  }
  return bytes;
}

/// The credentials after "<scheme> ", which is matched without regard to case.
std::optional<std::string_view> after_scheme(std::string_view header, std::string_view scheme) {
  if (header.size() <= scheme.size() || header[scheme.size()] != ' ') return std::nullopt;
  for (size_t i = 0; i < scheme.size(); ++i) {
    if (std::tolower(uint8_t(header[i])) != scheme[i]) return std::nullopt;
  }
  header.remove_prefix(std::min(header.find_first_not_of(' ', scheme.size()), header.size()));
  return header;
}

}  // namespace

ApiKeys ApiKeys::load(const std::filesystem::path& file) {
  const std::string text = read_text_file(file, kMaxFileBytes);
  ApiKeys keys;
  int line_number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    ++line_number;
    while (!line.empty() && (line.back() == ' ' || line.back() == '\r' || line.back() == '\t'))
      line.pop_back();
    if (line.empty() || line[0] == '#') continue;
    const bool printable = std::ranges::all_of(line, [](char c) { return c > ' ' && c <= '~'; });
    check(printable && line.size() <= kMaxKeyBytes,
          "{} line {}: a key has 1 to {} printable ASCII characters without spaces", file.string(),
          line_number, kMaxKeyBytes);
    keys.keys_.push_back(std::move(line));
  }
  check(!keys.keys_.empty(), "{}: holds no key", file.string());
  return keys;
}

bool ApiKeys::allow(std::string_view authorization) const {
  if (keys_.empty()) return true;
  std::string given;
  if (const auto bearer = after_scheme(authorization, "bearer")) {
    given = *bearer;
  } else if (const auto basic = after_scheme(authorization, "basic")) {
    const std::string pair = base64_decoded(*basic).value_or("");
    given = pair.substr(std::min(pair.find(':'), pair.size() - 1) + 1);
  }
  bool allowed = false;
  for (const std::string& key : keys_) allowed |= equal_in_constant_time(given, key);
  return allowed;
}

}  // namespace spinfer
