#include "tokenizer/text_pipeline.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace spinfer {
namespace {

using Strings = std::vector<std::string>;
using When = PrependStep::When;

Strings run(const TextPipeline& pipeline, std::string_view text, bool at_start = true) {
  const TextPieces pieces = pipeline.run(text, at_start);
  return Strings(pieces.pieces.begin(), pieces.pieces.end());
}

template <typename Step>
Strings run_step(Step step, std::string_view text, bool at_start = true) {
  TextPipeline pipeline;
  pipeline.add(std::move(step));
  return run(pipeline, text, at_start);
}

TEST(TextPipeline, EmptyTextHasNoPieces) {
  EXPECT_EQ(run_step(PrependStep{"_", When::kAlways}, ""), Strings{});
}

TEST(TextPipeline, PrependsWhereItShould) {
  EXPECT_EQ(run_step(PrependStep{"_", When::kAlways}, "_a"), Strings{"__a"});
  EXPECT_EQ(run_step(PrependStep{"_", When::kUnlessThere}, "_a"), Strings{"_a"});
  EXPECT_EQ(run_step(PrependStep{"_", When::kUnlessThere}, "a", false), Strings{"_a"});
  EXPECT_EQ(run_step(PrependStep{"_", When::kUnlessThereFirst}, "a", true), Strings{"_a"});
  EXPECT_EQ(run_step(PrependStep{"_", When::kUnlessThereFirst}, "a", false), Strings{"a"});
}

TEST(TextPipeline, ReplacesAll) {
  EXPECT_EQ(run_step(ReplaceStep{"ab", "x"}, "abcabab"), Strings{"xcxx"});
}

// Each step may put 256 bytes in the place of one: four of them would make gigabytes of a letter.
TEST(TextPipeline, TextThatGrowsAbsurdlyIsRefused) {
  TextPipeline pipeline;
  for (int i = 0; i < 4; ++i) pipeline.add(ReplaceStep{"a", std::string(256, 'a')});
  EXPECT_THROW(run(pipeline, "a"), std::runtime_error);
  EXPECT_EQ(run(pipeline, "b"), Strings{"b"});
  EXPECT_EQ(run_step(ReplaceStep{"a", std::string(256, 'a')}, "aa"), Strings{std::string(512, 'a')});
}

TEST(TextPipeline, NormalizesUnicode) {
  EXPECT_EQ(run_step(NormalizeStep{UnicodeForm::kNfc}, "e\u0301\u212b"), Strings{"\u00e9\u00c5"});
  EXPECT_EQ(run_step(NormalizeStep{UnicodeForm::kNfd}, "\u00e9"), Strings{"e\u0301"});
  EXPECT_EQ(run_step(NormalizeStep{UnicodeForm::kNfkc}, "\ufb01"), Strings{"fi"});
  EXPECT_EQ(run_step(NormalizeStep{UnicodeForm::kNfkd}, "\u00bd"), Strings{"1\u20442"});
  EXPECT_EQ(run_step(NormalizeStep{UnicodeForm::kNfc}, std::string_view("\u00e9\0x", 4)),
            Strings{std::string("\u00e9\0x", 4)});
}

TEST(TextPipeline, SplitsKeepMatchesOrGaps) {
  EXPECT_EQ(run_step(SplitStep{SplitRegex::compile("[0-9]", false)}, "ab12c"),
            (Strings{"ab", "1", "2", "c"}));
  EXPECT_EQ(run_step(SplitStep{SplitRegex::compile("[0-9]", false), true, false}, "ab12c"),
            (Strings{"1", "2"}));
  EXPECT_EQ(run_step(SplitStep{SplitRegex::compile("[0-9]", false), false, true}, "ab12c"),
            (Strings{"ab", "c"}));
}

TEST(TextPipeline, WordsBeginWithTheirSpaces) {
  EXPECT_EQ(run_step(WordSplitStep{}, "a▁▁b▁c▁"), (Strings{"a", "▁▁b", "▁c", "▁"}));
}

TEST(TextPipeline, StepsFollowEachOther) {
  TextPipeline pipeline;
  pipeline.add(ReplaceStep{" ", "▁"});
  pipeline.add(PrependStep{"▁", When::kAlways});
  pipeline.add(WordSplitStep{});
  EXPECT_EQ(run(pipeline, "to be"), (Strings{"▁to", "▁be"}));
}

}  // namespace
}  // namespace spinfer
