#include <gtest/gtest.h>

#include <random>

#include "tests/tokenizer/sample_tokenizers.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

namespace spinfer {
namespace {

using Ids = std::vector<int32_t>;

class Incremental : public testing::TestWithParam<int> {
 protected:
  static Tokenizer make(int kind) {
    if (kind == 0) return sample::load({{"tokenizer.json", sample::byte_level_json().dump()}});
    if (kind == 1) return sample::load({{"tokenizer.json", sample::metaspace_json().dump()}});
    sample::ProtoOptions options;
    options.remove_extra_whitespaces = kind == 3;
    return sample::load({{"tokenizer.model", sample::model_proto(sample::llama_pieces(), options)}});
  }
  Tokenizer tokenizer_ = make(GetParam());
};

// Any ids, ill-formed bytes and special tokens among them, cut anywhere into prompt and continuation.
TEST_P(Incremental, PiecesMakeUpTheWholeText) {
  std::mt19937 random(11);
  for (int round = 0; round < 400; ++round) {
    Ids ids(random() % 30);
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % tokenizer_.vocab_size());
    IncrementalDecoder decoder(tokenizer_, {});
    std::string text;
    for (const int32_t id : ids) {
      const std::string piece = decoder.push(id);
      EXPECT_TRUE(is_valid_utf8(piece));
      text += piece;
    }
    EXPECT_EQ(text + decoder.finish(), tokenizer_.decode(ids));
  }
}

TEST_P(Incremental, ContinuesThePrompt) {
  const std::string text = "hello  he llo \u00e9\xF0\x9F\x98\x80 hello";
  const Ids ids = tokenizer_.encode(text, true);
  const std::string whole = tokenizer_.decode(ids);
  for (size_t cut = 0; cut <= ids.size(); ++cut) {
    const std::span<const int32_t> prompt(ids.data(), cut);
    IncrementalDecoder decoder(tokenizer_, prompt);
    std::string continuation;
    for (size_t i = cut; i < ids.size(); ++i) continuation += decoder.push(ids[i]);
    continuation += decoder.finish();
    std::string before = tokenizer_.decode(prompt);
    // A prompt that ends inside a character decodes to U+FFFD there; the character comes with the
    // continuation.
    while (before.ends_with(kReplacementChar)) before.resize(before.size() - kReplacementChar.size());
    EXPECT_EQ(before + continuation, whole) << "cut after " << cut;
  }
}

INSTANTIATE_TEST_SUITE_P(Tokenizers, Incremental, testing::Range(0, 4));

TEST(IncrementalDecoder, HoldsBackIncompleteCharacters) {
  const Tokenizer tokenizer = sample::load({{"tokenizer.json", sample::byte_level_json().dump()}});
  IncrementalDecoder decoder(tokenizer, {});
  EXPECT_EQ(decoder.push(0xF0), "");
  EXPECT_EQ(decoder.push(0x9F), "");
  EXPECT_EQ(decoder.push(0x98), "");
  EXPECT_EQ(decoder.push(0x80), "\xF0\x9F\x98\x80");
  EXPECT_EQ(decoder.push(0xE2), "");
  EXPECT_EQ(decoder.push('a'),
            "\uFFFD"
            "a");
  EXPECT_EQ(decoder.push(0xE2), "");
  EXPECT_EQ(decoder.finish(), "\uFFFD");
  EXPECT_EQ(decoder.finish(), "");
  EXPECT_THROW(decoder.push(9999), std::runtime_error);
}

TEST(IncrementalDecoder, SpaceAfterThePromptStays) {
  const Tokenizer tokenizer = sample::load({{"tokenizer.json", sample::metaspace_json().dump()}});
  const int32_t word = tokenizer.id_of("\u2581hello").value();
  EXPECT_EQ(IncrementalDecoder(tokenizer, Ids{1}).push(word), "hello");
  EXPECT_EQ(IncrementalDecoder(tokenizer, Ids{1, word}).push(word), " hello");
}

}  // namespace
}  // namespace spinfer
