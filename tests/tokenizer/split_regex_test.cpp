#include "tokenizer/split_regex.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace spinfer {
namespace {

std::vector<SplitRegex::Match> find_all(std::string_view pattern, std::string_view text,
                                        bool literal = false) {
  return SplitRegex::compile(pattern, literal).find_all(text, SplitRegex::deadline(text.size()));
}

std::vector<std::string> split(std::string_view pattern, const std::string& text, bool literal = false) {
  std::vector<std::string> out;
  for (const auto& m : find_all(pattern, text, literal)) {
    out.push_back(text.substr(m.begin, m.end - m.begin));
  }
  return out;
}

using Strings = std::vector<std::string>;

TEST(SplitRegex, LooksAhead) {
  EXPECT_EQ(split(R"(\s+(?!\S)|\s+|\S+)", "a  b"), (Strings{"a", " ", " ", "b"}));
}

TEST(SplitRegex, KnowsUnicodeClasses) {
  EXPECT_EQ(split(R"(\p{L}+|\p{N}+)", "caf\u00e9\u00bd\u0663 \u0416"),
            (Strings{"caf\u00e9", "\u00bd\u0663", "\u0416"}));
  EXPECT_EQ(split(R"((?i:'s))", "'S 's"), (Strings{"'S", "'s"}));
}

// Python, Rust and Oniguruma do not count U+180E as white space; PCRE2's own \s does.
TEST(SplitRegex, WhiteSpaceIsUnicodes) {
  EXPECT_EQ(split(R"(\s)", " \u180e\u00a0\u3000\u0085"), (Strings{" ", "\u00a0", "\u3000", "\u0085"}));
  EXPECT_EQ(split(R"([^\s\p{L}]+)", "a \u180e!\u2003b"), (Strings{"\u180e!"}));
  EXPECT_EQ(split(R"(\S+)", "a\u180e b"), (Strings{"a\u180e", "b"}));
}

TEST(SplitRegex, LiteralPatternsAreNoExpressions) {
  EXPECT_EQ(split("a.*", "xa.*a.b", true), Strings{"a.*"});
}

TEST(SplitRegex, SkipsEmptyMatches) {
  EXPECT_EQ(split("x*", "axxb"), Strings{"xx"});
}

TEST(SplitRegex, RefusesBadPatterns) {
  for (const std::string& pattern :
       {std::string("("), std::string(""), std::string("\\C"), std::string("(?<=a*)b"),
        std::string(9000, 'a'), std::string("[[:nothing:]]")}) {
    EXPECT_THROW(SplitRegex::compile(pattern, false), std::runtime_error) << pattern.substr(0, 20);
  }
}

// A hostile pattern ends with an error in seconds, not after the years its steps would take.
TEST(SplitRegex, ExponentialPatternsEnd) {
  const std::string text(5000, 'a');
  for (const char* pattern :
       {"(?:a*)*b|.", "(?:a|b)*(?:a|b)*(?:a|b)*c|.", "[ab]*[ab]*[ab]*[ab]*c|.", "(?:a|a)*b|."}) {
    EXPECT_THROW(find_all(pattern, text), std::runtime_error) << pattern;
  }
}

TEST(SplitRegex, RecursivePatternsEnd) {
  EXPECT_THROW(find_all("(a(?1)*b?)+c|.", std::string(100'000, 'a')), std::runtime_error);
}

// One deadline holds for all pieces of a text, however short each is.
TEST(SplitRegex, EndsAtItsDeadline) {
  const SplitRegex regex = SplitRegex::compile("a", false);
  EXPECT_EQ(regex.find_all("a", SplitRegex::deadline(1)).size(), 1u);
  EXPECT_THROW(regex.find_all("a", SplitRegex::Deadline::min()), std::runtime_error);
}

// The usual patterns step back over a run of white space once: any length must pass.
TEST(SplitRegex, LongRunsOfWhiteSpacePass) {
  const std::string text = std::string(3'000'000, ' ') + "a";
  EXPECT_EQ(split(R"(\s*[\r\n]+|\s+(?!\S)|\s+|\S+)", text).size(), 3u);
}

}  // namespace
}  // namespace spinfer
