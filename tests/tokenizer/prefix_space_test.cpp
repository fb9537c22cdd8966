// The space that a tokenizer puts before a text: "legacy" and "add_prefix_space" of tokenizer_config.json.
// The ids are what transformers 4.57 gives for the same pieces and files.
#include <gtest/gtest.h>

#include "tests/tokenizer/sample_tokenizers.h"
#include "tokenizer/tokenizer.h"

namespace spinfer {
namespace {

using Ids = std::vector<int32_t>;

/// SentencePiece takes texts word by word or as a whole; here once each.
class PrefixSpace : public testing::TestWithParam<bool> {
 protected:
  static Tokenizer load(const std::string& config, const sample::ProtoOptions& options = {}) {
    auto pieces = sample::llama_pieces();
    if (GetParam()) pieces.push_back({"z▁z", -1000, 1});  // crosses a word border, so that text stays whole
    return sample::load(
        {{"tokenizer.model", sample::model_proto(pieces, options)}, {"tokenizer_config.json", config}});
  }
};

TEST_P(PrefixSpace, IsWhereTheConfigSays) {
  struct Row {
    std::string config;
    enum { each, first, never } expected;
  };
  const std::vector<Row> rows = {
      {R"({})", Row::each},
      {R"({"legacy": null, "add_prefix_space": null})", Row::each},
      {R"({"legacy": true})", Row::each},
      {R"({"add_prefix_space": true})", Row::each},
      {R"({"legacy": false})", Row::first},
      {R"({"legacy": false, "add_prefix_space": true})", Row::first},
      {R"({"add_prefix_space": false})", Row::never},
      {R"({"legacy": true, "add_prefix_space": false})", Row::never},
      {R"({"legacy": false, "add_prefix_space": false})", Row::never},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.config);
    const Tokenizer tokenizer = load(row.config);
    const auto id = [&](const char* piece) { return tokenizer.id_of(piece).value(); };
    const int32_t space = id("▁"), word = id("hello"), spaced = id("▁hello"), end = id("</s>");
    const auto encode = [&](const char* text) { return tokenizer.encode(text, false, true); };
    if (row.expected == Row::each) {
      EXPECT_EQ(encode("hello</s>hello"), (Ids{spaced, end, spaced}));
      EXPECT_EQ(encode(" hello</s> hello"), (Ids{space, spaced, end, space, spaced}));
      EXPECT_EQ(encode("▁hello"), (Ids{space, spaced}));
      EXPECT_EQ(encode("</s>hello"), (Ids{end, spaced}));
    } else {
      const bool first = row.expected == Row::first;
      EXPECT_EQ(encode("hello</s>hello"), (Ids{first ? spaced : word, end, word}));
      EXPECT_EQ(encode(" hello</s> hello"), (Ids{spaced, end, spaced}));
      EXPECT_EQ(encode("▁hello"), Ids{spaced});
      EXPECT_EQ(encode("</s>hello"), (Ids{end, word}));
    }
    EXPECT_EQ(encode(""), Ids{});
    EXPECT_EQ(tokenizer.decode(Ids{spaced, spaced}),
              row.expected == Row::never ? " hello hello" : "hello hello");
  }
}

// The config's word counts before the model's.
TEST_P(PrefixSpace, OfAModelWithoutOne) {
  sample::ProtoOptions options;
  options.add_dummy_prefix = false;
  for (const auto& [config, has_space] :
       {std::pair{R"({})", false}, {R"({"add_prefix_space": true})", true}, {R"({"legacy": false})", true}}) {
    const Tokenizer tokenizer = load(config, options);
    EXPECT_EQ(tokenizer.encode("hello", false), Ids{tokenizer.id_of(has_space ? "▁hello" : "hello").value()})
        << config;
  }
}

// A space that the text brings stays one where none would be added.
TEST_P(PrefixSpace, OfAModelThatRemovesSpaces) {
  sample::ProtoOptions options;
  options.remove_extra_whitespaces = true;
  const Tokenizer first = load(R"({"legacy": false})", options);
  const Tokenizer never = load(R"({"add_prefix_space": false})", options);
  const int32_t spaced = first.id_of("▁hello").value(), word = first.id_of("hello").value();
  EXPECT_EQ(first.encode("hello  hello", false), (Ids{spaced, spaced}));
  EXPECT_EQ(first.encode("   hello  </s>  hello", false, true), (Ids{spaced, 2, spaced}));
  EXPECT_EQ(first.encode("</s>hello", false, true), (Ids{2, word}));
  EXPECT_EQ(first.encode("   ", false), Ids{});
  EXPECT_EQ(never.encode("hello", false), Ids{word});
  EXPECT_EQ(never.encode("  hello", false), Ids{spaced});
}

INSTANTIATE_TEST_SUITE_P(SentencePiece, PrefixSpace, testing::Bool(),
                         [](const auto& info) { return info.param ? "Whole" : "Words"; });

TEST(PrefixSpace, OfVocabAndMerges) {
  const auto load = [](const char* config, const char* model_type) {
    TokenizerHints hints;
    hints.model_type = model_type;
    return sample::load({{"vocab.json", sample::vocab_json()},
                         {"merges.txt", sample::merges_txt()},
                         {"tokenizer_config.json", config}},
                        hints);
  };
  const char* const added =
      R"({"add_prefix_space": true, "added_tokens_decoder": {"262": {"content": "<x>"}}})";
  const int32_t spaced = 261;  // " wo"
  EXPECT_EQ(load(R"({"add_prefix_space": false})", "gpt2").encode("wo", false), (Ids{'w', 'o'}));
  EXPECT_EQ(load(added, "gpt2").encode("wo<x>wo", false), (Ids{spaced, 262, spaced}));
  EXPECT_EQ(load(added, "gpt2").encode(" wo<x> wo", false), (Ids{spaced, 262, spaced}));
  EXPECT_EQ(load(added, "gpt2").encode("\nwo", false), (Ids{' ', '\n', 'w', 'o'}));
  EXPECT_EQ(load(added, "gpt2").decode(Ids{spaced}), " wo");
  EXPECT_EQ(load(added, "qwen2").encode("\nwo", false), (Ids{' ', '\n', spaced}));  // as transformers 5 does
}

}  // namespace
}  // namespace spinfer
