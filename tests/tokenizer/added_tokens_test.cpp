#include "tokenizer/added_tokens.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace spinfer {
namespace {

// Text in brackets, tokens as their ids.
std::string show(const AddedTokens& tokens, std::string_view text, bool parse_special = true) {
  std::string out;
  for (const auto& segment : tokens.split(text, parse_special)) {
    if (segment.token != nullptr) {
      out += std::to_string(segment.token->id);
    } else {
      out.append("[").append(segment.text).append("]");
    }
  }
  return out;
}

TEST(AddedTokens, TakesTheLongestAtTheLeftmostPlace) {
  const AddedTokens tokens({{1, "<a"}, {2, "<a>"}, {3, "a>b"}});
  EXPECT_EQ(show(tokens, "x<a>b<a<"), "[x]2[b]1[<]");
  EXPECT_EQ(show(tokens, "a>b<a>"), "32");
  EXPECT_EQ(show(tokens, ""), "");
}

TEST(AddedTokens, SpecialOnesOnlyWhenAsked) {
  const AddedTokens tokens({{1, "<s>", true}, {2, "word"}});
  EXPECT_EQ(show(tokens, "<s>word<s>", true), "121");
  EXPECT_EQ(show(tokens, "<s>word<s>", false), "[<s>]2[<s>]");
}

TEST(AddedTokens, ShorterOneWhereTheLongerIsSpecialOrDoesNotEndThere) {
  const AddedTokens tokens({{1, "<ab>", true}, {2, "<a"}, {3, "<"}, {4, "<abcd"}, {2, "<a"}});
  EXPECT_EQ(show(tokens, "<ab>", false), "2[b>]");
  EXPECT_EQ(show(tokens, "<ab>", true), "1");
  EXPECT_EQ(show(tokens, "<abc<b<", true), "2[bc]3[b]3");
}

TEST(AddedTokens, ContentOfAnyBytes) {
  const AddedTokens tokens(
      {{1, "\xC3\xA9"}, {2, "\xC3"}, {3, std::string("\0", 1)}, {4, "z\xFF"}, {5, "zA"}});
  EXPECT_EQ(show(tokens, std::string_view("\xC3\xA9\0z\xFF\xC3zA", 8)), "13425");
}

// Looking at each token that begins as the text does takes hours here.
TEST(AddedTokens, ManyThatBeginAlike) {
  std::vector<AddedToken> list;
  for (int32_t i = 0; i < 200'000; ++i) list.push_back({i, fmt::format("<{}>", i)});
  const AddedTokens tokens(std::move(list));
  const std::string text(1 << 20, '<');
  EXPECT_EQ(tokens.split(text, true).size(), 1u);
  EXPECT_EQ(tokens.split(text + "777>", true).back().token->id, 777);
}

TEST(AddedTokens, SwallowsWhiteSpace) {
  const AddedTokens tokens({{1, "<m>", false, true, false}, {2, "<r>", false, false, true}});
  EXPECT_EQ(show(tokens, "a \n<m> b"), "[a]1[ b]");
  EXPECT_EQ(show(tokens, "a <r> \tb<r>  "), "[a ]2[b]2");
  EXPECT_EQ(show(tokens, "  <m>"), "1");
}

// \s of Hugging Face's regular expressions: Unicode's, and not U+001C or the zero-width space.
TEST(AddedTokens, SwallowsUnicodeWhiteSpace) {
  const AddedTokens tokens({{1, "<m>", false, true, false}, {2, "<r>", false, false, true}});
  EXPECT_EQ(show(tokens, "é\u3000\u00a0 <m>\u2003b"), "[é]1[\u2003b]");
  EXPECT_EQ(show(tokens, "\u2028<r>\u00a0\u3000\u202fé"), "[\u2028]2[é]");
  EXPECT_EQ(show(tokens, "a\x1c<m>"), "[a\x1c]1");
  EXPECT_EQ(show(tokens, "<r>\u200b"), "2[\u200b]");
  EXPECT_EQ(show(tokens, "<r>\u3000"), "2");
}

}  // namespace
}  // namespace spinfer
