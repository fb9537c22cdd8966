#include "tokenizer/added_tokens.h"

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

TEST(AddedTokens, SwallowsWhiteSpace) {
  const AddedTokens tokens({{1, "<m>", false, true, false}, {2, "<r>", false, false, true}});
  EXPECT_EQ(show(tokens, "a \n<m> b"), "[a]1[ b]");
  EXPECT_EQ(show(tokens, "a <r> \tb<r>  "), "[a ]2[b]2");
  EXPECT_EQ(show(tokens, "  <m>"), "1");
}

}  // namespace
}  // namespace spinfer
