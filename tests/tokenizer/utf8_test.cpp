#include "tokenizer/utf8.h"

#include <gtest/gtest.h>

#include <vector>

namespace spinfer {
namespace {

// Python's bytes.decode("utf-8", "replace") gives the second; SentencePiece one U+FFFD per byte.
TEST(Utf8, ReplacesIllFormedSequences) {
  struct Row {
    std::string bytes, per_sequence;
    size_t replaced_bytes;
  };
  const std::vector<Row> rows = {
      {"plain", "plain", 0},
      {"a\xC3\xA9z", "a\xC3\xA9z", 0},
      {"\x80", "\uFFFD", 1},
      {"\xC0\xAF", "\uFFFD\uFFFD", 2},                      // overlong
      {"\xE0\x80\xAF", "\uFFFD\uFFFD\uFFFD", 3},            // overlong
      {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD", 3},            // surrogate
      {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD", 4},  // above U+10FFFF
      {"\xE2\x96"
       "a",
       "\uFFFD"
       "a",
       2},
      {"\xF0\x9F\x98\xF0\x9F\x98\x80", "\uFFFD\xF0\x9F\x98\x80", 3},
      {"x\xF0\x9F", "x\uFFFD", 2},
      {"\xFF\xFE", "\uFFFD\uFFFD", 2},
  };
  for (const Row& row : rows) {
    EXPECT_EQ(replace_invalid_utf8(row.bytes), row.per_sequence);
    EXPECT_EQ(is_valid_utf8(row.bytes), row.replaced_bytes == 0);
    std::string pending, out;
    take_complete_chars(pending, row.bytes, InvalidBytes::kOnePerByte, out);
    flush_incomplete_char(pending, InvalidBytes::kOnePerByte, out);
    size_t replacements = 0;
    for (size_t at = out.find(kReplacementChar); at != std::string::npos;
         at = out.find(kReplacementChar, at + 3)) {
      ++replacements;
    }
    EXPECT_EQ(replacements, row.replaced_bytes) << out;
  }
}

std::string encoded(char32_t c) {
  std::string out;
  if (c < 0x80) return {char(c)};
  const int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
  out += char((0xFF00 >> (more + 1)) | (c >> (6 * more)));
  for (int i = more - 1; i >= 0; --i) out += char(0x80 | (c >> (6 * i) & 0x3F));
  return out;
}

// Of all characters: what Rust's regex takes for \s, and what Python's str.isspace is true for.
TEST(Utf8, KnowsWhiteSpace) {
  std::vector<char32_t> unicode, python;
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    const std::string text = encoded(c);
    ASSERT_TRUE(is_valid_utf8(text)) << uint32_t(c);
    ASSERT_EQ(last_char("é" + text), text) << uint32_t(c);
    if (is_white_space(text, WhiteSpace::kUnicode)) unicode.push_back(c);
    if (is_white_space(text, WhiteSpace::kPython)) python.push_back(c);
  }
  const std::vector<char32_t> expected = {
      0x9,    0xA,    0xB,    0xC,    0xD,    0x20,   0x85,   0xA0,   0x1680, 0x2000, 0x2001, 0x2002, 0x2003,
      0x2004, 0x2005, 0x2006, 0x2007, 0x2008, 0x2009, 0x200A, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000};
  EXPECT_EQ(unicode, expected);
  std::vector<char32_t> also = expected;
  also.insert(also.begin() + 5, {0x1C, 0x1D, 0x1E, 0x1F});
  EXPECT_EQ(python, also);
}

TEST(Utf8, StripsWhiteSpace) {
  const std::string text =
      "\u3000 \x1c"
      "é \u0085";
  EXPECT_EQ(strip_white_space(text, true, true, WhiteSpace::kPython), "é");
  EXPECT_EQ(strip_white_space(text, true, true, WhiteSpace::kUnicode),
            "\x1c"
            "é");
  EXPECT_EQ(strip_white_space(text, false, true, WhiteSpace::kPython),
            "\u3000 \x1c"
            "é");
  EXPECT_EQ(strip_white_space(text, true, false, WhiteSpace::kPython), "é \u0085");
  EXPECT_EQ(strip_white_space("\u2029\t", false, true, WhiteSpace::kUnicode), "");
}

TEST(Utf8, BytesOneByOneGiveTheSameText) {
  const std::string text = "a\xC3\xA9\xE2\x96\x81\xF0\x9F\x98\x80 \xE2\x96 \xED\xA0\x80 \xF0\x9F\x98";
  for (const auto mode : {InvalidBytes::kOnePerSequence, InvalidBytes::kOnePerByte}) {
    std::string at_once, one_by_one, pending;
    take_complete_chars(pending, text, mode, at_once);
    flush_incomplete_char(pending, mode, at_once);
    for (const char c : text) {
      std::string piece;
      take_complete_chars(pending, {&c, 1}, mode, piece);
      EXPECT_TRUE(is_valid_utf8(piece));
      EXPECT_LE(pending.size(), 3u);
      one_by_one += piece;
    }
    flush_incomplete_char(pending, mode, one_by_one);
    EXPECT_EQ(one_by_one, at_once);
  }
}

}  // namespace
}  // namespace spinfer
