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
