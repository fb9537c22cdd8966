#include "engine/stop_strings.h"

#include <gtest/gtest.h>

#include <random>

namespace spinfer {
namespace {

struct Result {
  std::string text;
  bool stopped;
  friend bool operator==(const Result&, const Result&) = default;
};

Result feed(const std::vector<std::string>& stops, const std::vector<std::string>& pieces) {
  StopStrings matcher(stops);
  Result result{"", false};
  for (const auto& piece : pieces) result.text += matcher.push(piece);
  result.text += matcher.finish();
  result.stopped = matcher.stopped();
  return result;
}

TEST(StopStrings, WithoutAnyTextPassesThroughAtOnce) {
  StopStrings matcher({});
  EXPECT_EQ(matcher.push("anything"), "anything");
  EXPECT_FALSE(matcher.stopped());
}

TEST(StopStrings, HoldsBackOnlyWhatMayBeginAStop) {
  StopStrings matcher({"\n\nQ:"});
  EXPECT_EQ(matcher.push("A: yes"), "A: yes");
  EXPECT_EQ(matcher.push(".\n"), ".");
  EXPECT_EQ(matcher.push("\n"), "");
  EXPECT_EQ(matcher.push("\n"), "\n");
  EXPECT_EQ(matcher.push("Qx"), "\n\nQx");
  EXPECT_EQ(matcher.push("\n\nQ: more"), "");
  EXPECT_TRUE(matcher.stopped());
  EXPECT_EQ(matcher.push("ignored"), "");
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopStrings, EndOfTextReleasesWhatWasHeld) {
  EXPECT_EQ(feed({"END"}, {"the ", "EN"}), (Result{"the EN", false}));
}

TEST(StopStrings, FirstToBecomeCompleteWins) {
  EXPECT_EQ(feed({"abcd", "bc"}, {"xabcd"}), (Result{"xa", true}));
  EXPECT_EQ(feed({"bc", "abc"}, {"xabc"}), (Result{"x", true}));
  EXPECT_EQ(feed({"z", "b"}, {"abcz"}), (Result{"a", true}));
}

TEST(StopStrings, SelfOverlappingStopIsFound) {
  EXPECT_EQ(feed({"aab"}, {"a", "a", "a", "b"}), (Result{"a", true}));
}

TEST(StopStrings, AByteTakesTheSameTimeWhateverTheStrings) {
  const std::string almost = std::string(4095, 'a') + 'b';
  StopStrings matcher(std::vector<std::string>(16, almost));
  std::string text;
  for (int i = 0; i < 50'000; ++i) text += matcher.push("a");  // quadratic: minutes
  EXPECT_EQ(text.size(), 50'000u - 4095u);
  EXPECT_EQ(matcher.push("b"), "");
  EXPECT_TRUE(matcher.stopped());
}

TEST(StopStrings, ResultDoesNotDependOnHowTextIsCut) {
  std::mt19937 random(3);
  int stopped = 0;
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops;
    for (size_t i = 0; i < 1 + random() % 3; ++i) {
      std::string stop;
      for (size_t length = 1 + random() % 5; stop.size() < length;) stop += char('a' + random() % 2);
      stops.push_back(stop);
    }
    std::string text;
    for (size_t length = random() % 16; text.size() < length;) text += char('a' + random() % 3);
    std::vector<std::string> bytes, pieces;
    for (char c : text) bytes.emplace_back(1, c);
    for (size_t at = 0; at < text.size();) {
      const size_t length = 1 + random() % 4;
      pieces.push_back(text.substr(at, length));
      at += length;
    }
    const Result whole = feed(stops, {text});
    EXPECT_EQ(feed(stops, bytes), whole) << text;
    EXPECT_EQ(feed(stops, pieces), whole) << text;
    stopped += whole.stopped;
    if (!whole.stopped) {
      EXPECT_EQ(whole.text, text);
    }
  }
  EXPECT_GT(stopped, 300);
  EXPECT_LT(stopped, 2900);
}

}  // namespace
}  // namespace spinfer
