#include "tokenizer/byte_alphabet.h"

#include <array>
#include <cstdint>

#include "tokenizer/utf8.h"

namespace spinfer {
namespace {

constexpr int kAlphabetEnd = 0x144;  // code points used: some below U+0100, and U+0100 ... U+0143

constexpr bool stands_for_itself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
}

// byte → code point: printable Latin-1 stands for itself, the other bytes follow each other from U+0100.
constexpr std::array<uint16_t, 256> kCodePointOfByte = [] {
  std::array<uint16_t, 256> table{};
  uint16_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    table[byte] = stands_for_itself(byte) ? static_cast<uint16_t>(byte) : next++;
  }
  return table;
}();

constexpr std::array<int16_t, kAlphabetEnd> kByteOfCodePoint = [] {
  std::array<int16_t, kAlphabetEnd> table{};
  for (auto& byte : table) byte = -1;
  for (int byte = 0; byte < 256; ++byte) table[kCodePointOfByte[byte]] = static_cast<int16_t>(byte);
  return table;
}();

}  // namespace

std::string byte_alphabet_char(unsigned char byte) {
  const uint16_t code = kCodePointOfByte[byte];
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

std::optional<std::string> bytes_of_piece(std::string_view piece) {
  std::string bytes;
  while (!piece.empty()) {
    const Utf8Char c = first_char(piece);
    if (c.kind != Utf8Char::kValid || c.length > 2) return std::nullopt;
    const auto lead = static_cast<uint8_t>(piece[0]);
    const int code = c.length == 1 ? lead : ((lead & 0x1F) << 6) | (static_cast<uint8_t>(piece[1]) & 0x3F);
    if (code >= kAlphabetEnd || kByteOfCodePoint[code] < 0) return std::nullopt;
    bytes += static_cast<char>(kByteOfCodePoint[code]);
    piece.remove_prefix(c.length);
  }
  return bytes;
}

}  // namespace spinfer
