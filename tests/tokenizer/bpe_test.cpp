// Merging, and the byte-level and SentencePiece-like models on small vocabularies.
#include <gtest/gtest.h>

#include <chrono>
#include <random>

#include "tests/tokenizer/sample_tokenizers.h"
#include "tokenizer/merge_table.h"
#include "tokenizer/tokenizer.h"

namespace spinfer {
namespace {

using Ids = std::vector<int32_t>;

// The definition: repeatedly join the leftmost of the pairs with the lowest rank.
Ids merge_by_definition(const MergeTable& table, Ids ids) {
  for (;;) {
    const Merge* best = nullptr;
    size_t at = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const Merge* merge = table.find(ids[i], ids[i + 1]);
      if (merge != nullptr && (best == nullptr || merge->rank < best->rank)) best = merge, at = i;
    }
    if (best == nullptr) return ids;
    ids[at] = best->result;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
}

TEST(Merger, FollowsTheDefinition) {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    MergeTable table(1);  // grows
    for (int i = 0; i < 60; ++i) {
      table.insert(random() % 12, random() % 12,
                   {static_cast<uint32_t>(random() % 20), static_cast<int32_t>(random() % 12)});
    }
    Ids ids(random() % 40);
    for (int32_t& id : ids) id = random() % 12;
    Ids merged = {-7};  // merge() appends
    Merger(table).merge(ids, merged);
    Ids expected = merge_by_definition(table, ids);
    expected.insert(expected.begin(), -7);
    EXPECT_EQ(merged, expected);
  }
}

TEST(MergeTable, KeepsTheLastOfAPairGivenTwice) {
  MergeTable table(4);
  table.insert(1, 2, {5, 50});
  table.insert(1, 2, {3, 30});
  ASSERT_NE(table.find(1, 2), nullptr);
  EXPECT_EQ(table.find(1, 2)->result, 30);
  EXPECT_EQ(table.find(2, 1), nullptr);
}

// Pairs whose keys, multiplied as the table does, have the same upper bits.
TEST(MergeTable, RefusesMergesThatFallIntoOnePlace) {
  constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15u;
  uint64_t inverse = 1;
  for (int i = 0; i < 6; ++i) inverse *= 2 - kMultiplier * inverse;
  const auto insert_all = [&] {
    MergeTable table(1);
    for (uint64_t i = 0, found = 0; found < 10'000; ++i) {
      const uint64_t key = (i << 40) * inverse;        // bits 20 ... 39 of the product are zero
      if (key >> 63 || (key & 0x80000000u)) continue;  // ids are not negative
      table.insert(static_cast<int32_t>(key >> 32), static_cast<int32_t>(key & 0xFFFFFFFFu), {0, 0});
      ++found;
    }
  };
  EXPECT_THROW(insert_all(), std::runtime_error);
}

// Merging a piece of a megabyte pair by pair in the simple way takes hours.
TEST(Merger, LongPiecesAreNotQuadratic) {
  auto json = sample::byte_level_json();
  std::string piece = "a";
  for (int id = 265; piece.size() < 64; ++id, piece += piece) {
    json["model"]["vocab"][piece + piece] = id;
    json["model"]["merges"].push_back(piece + " " + piece);
  }
  const Tokenizer tokenizer = sample::load({{"tokenizer.json", json.dump()}});
  const std::string text(1 << 20, 'a');
  const auto start = std::chrono::steady_clock::now();
  const Ids ids = tokenizer.encode(text, false);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
  EXPECT_EQ(ids, Ids((1 << 20) / 64, 270));
}

TEST(ByteLevel, MergesWithinSplits) {
  const Tokenizer tokenizer = sample::load({{"tokenizer.json", sample::byte_level_json().dump()}});
  EXPECT_EQ(tokenizer.encode("hello hello", false), (Ids{259, ' ', 259}));
  EXPECT_EQ(tokenizer.encode("hello world", false), (Ids{259, 261, 'r', 'l', 'd'}));
  EXPECT_EQ(tokenizer.encode("hello", true), (Ids{sample::kBos, 259}));
  EXPECT_EQ(tokenizer.encode("\xC3\xA9", false), (Ids{0xC3, 0xA9}));
  EXPECT_EQ(tokenizer.encode("\xFFx", false), (Ids{0xEF, 0xBF, 0xBD, 'x'}));
  EXPECT_EQ(tokenizer.encode(std::string("\0\x01", 2), false), (Ids{0, 1}));
  EXPECT_EQ(tokenizer.id_of("\xC4\xA0wo"), 261);
  EXPECT_EQ(tokenizer.piece_bytes(261), " wo");
  EXPECT_EQ(tokenizer.vocab_size(), 265);
}

TEST(ByteLevel, AddsAPrefixSpaceIfTold) {
  auto json = sample::byte_level_json();
  json["pre_tokenizer"]["add_prefix_space"] = true;
  const Tokenizer tokenizer = sample::load({{"tokenizer.json", json.dump()}});
  EXPECT_EQ(tokenizer.encode("wo", false), Ids{261});
  EXPECT_EQ(tokenizer.encode(" wo", false), Ids{261});
}

TEST(ByteLevel, MergesMayBePairs) {
  auto json = sample::byte_level_json();
  for (auto& merge : json["model"]["merges"]) {
    const auto text = merge.get<std::string>();
    merge = {text.substr(0, text.find(' ')), text.substr(text.find(' ') + 1)};
  }
  const Tokenizer tokenizer = sample::load({{"tokenizer.json", json.dump()}});
  EXPECT_EQ(tokenizer.encode("hello world", false), (Ids{259, 261, 'r', 'l', 'd'}));
}

// LLaMA-3: a split piece that is in the vocabulary is taken whole, even where merges do not lead there.
TEST(ByteLevel, IgnoreMergesTakesWholePieces) {
  auto json = sample::byte_level_json();
  json["model"]["vocab"]["xyz"] = 265;
  EXPECT_EQ(sample::load({{"tokenizer.json", json.dump()}}).encode("xyz", false), (Ids{'x', 'y', 'z'}));
  json["model"]["ignore_merges"] = true;
  EXPECT_EQ(sample::load({{"tokenizer.json", json.dump()}}).encode("xyz", false), (Ids{265}));
}

TEST(ByteLevel, Qwen2SplitsDigitsAndComposes) {
  TokenizerHints hints;
  hints.model_type = "qwen2";
  const Tokenizer tokenizer =
      sample::load({{"vocab.json", sample::vocab_json()}, {"merges.txt", sample::merges_txt()}}, hints);
  EXPECT_EQ(tokenizer.encode("e\u0301", false), (Ids{0xC3, 0xA9}));
  EXPECT_FALSE(tokenizer.adds_bos());
}

TEST(ByteLevel, SplitAndDigitsSteps) {
  auto json = sample::byte_level_json();
  json["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Digits"}, {"individual_digits", true}},
        {{"type", "Split"}, {"pattern", {{"Regex", "l"}}}, {"behavior", "Isolated"}, {"invert", false}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  const Tokenizer tokenizer = sample::load({{"tokenizer.json", json.dump()}});
  EXPECT_EQ(tokenizer.encode("hello12", false), (Ids{256, 'l', 'l', 'o', '1', '2'}));
}

TEST(Ranks, JoinsByRank) {
  const Tokenizer tokenizer = sample::load({{"tokenizer.model", sample::ranks_file()}});
  EXPECT_EQ(tokenizer.encode("hello world", false), (Ids{259, 261, 'r', 'l', 'd'}));
  EXPECT_EQ(tokenizer.encode("hello", true), (Ids{262, 259}));
  EXPECT_EQ(tokenizer.id_of("<|begin_of_text|>"), 262);
  EXPECT_EQ(tokenizer.id_of("<|eot_id|>"), 271);
  EXPECT_EQ(tokenizer.id_of("<|reserved_special_token_4|>"), 270);
  EXPECT_EQ(tokenizer.id_of("<|reserved_special_token_250|>"), 517);
  EXPECT_EQ(tokenizer.eos_ids(), (Ids{263, 271}));
  EXPECT_EQ(tokenizer.vocab_size(), 518);
}

// The two ways to the same LLaMA-2 style model.
class Metaspace : public testing::TestWithParam<bool> {
 protected:
  Tokenizer tokenizer_ =
      GetParam() ? sample::load({{"tokenizer.json", sample::metaspace_json().dump()}})
                 : sample::load({{"tokenizer.model", sample::model_proto(sample::llama_pieces())}});
  int32_t id(std::string_view piece) const { return tokenizer_.id_of(piece).value(); }
};

TEST_P(Metaspace, EncodesWithPrefixAndByteFallback) {
  EXPECT_EQ(tokenizer_.encode("hello", true), (Ids{1, id("▁hello")}));
  EXPECT_EQ(tokenizer_.encode(" hello", false), (Ids{id("▁"), id("▁hello")}));
  EXPECT_EQ(tokenizer_.encode("   a", false), (Ids{id("▁▁"), id("▁▁"), id("a")}));
  EXPECT_EQ(tokenizer_.encode("\u00e9\n", false), (Ids{id("▁"), id("<0xC3>"), id("<0xA9>"), id("<0x0A>")}));
  EXPECT_EQ(tokenizer_.encode("hellohello hello", false), (Ids{id("▁hello"), id("hello"), id("▁hello")}));
  EXPECT_EQ(tokenizer_.encode("", false), Ids{});
}

// Control and byte pieces are not reached by their names.
TEST_P(Metaspace, TextCannotNameByteOrControlPieces) {
  for (const std::string text : {"<0x41>", "<s>", "</s>", "<unk>"}) {
    const Ids ids = tokenizer_.encode(text, false);
    EXPECT_GT(ids.size(), 3u);
    EXPECT_EQ(tokenizer_.decode(ids), text);
  }
}

TEST_P(Metaspace, DecodeDropsOneLeadingSpace) {
  for (const std::string text :
       {"hello", " hello", "  hello ", "\u00e9 \xF0\x9F\x98\x80", " ", "   ", "\n x"}) {
    EXPECT_EQ(tokenizer_.decode(tokenizer_.encode(text, true)), text);
  }
  EXPECT_EQ(tokenizer_.decode(Ids{1, id("▁hello"), id("▁hello")}), "hello hello");
}

TEST_P(Metaspace, DecodeReplacesEachBadByte) {
  EXPECT_EQ(tokenizer_.decode(Ids{id("a"), id("<0xE2>"), id("<0x96>"), id("b")}), "a\uFFFD\uFFFDb");
}

INSTANTIATE_TEST_SUITE_P(Both, Metaspace, testing::Bool(),
                         [](const auto& info) { return info.param ? "Json" : "Model"; });

TEST(Metaspace, PreTokenizerSchemes) {
  auto json = sample::metaspace_json();
  json["normalizer"] = nullptr;
  json["pre_tokenizer"] = {
      {"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "first"}, {"split", false}};
  const Tokenizer first = sample::load({{"tokenizer.json", json.dump()}});
  const int32_t word = first.id_of("hello").value(), spaced = first.id_of("▁hello").value();
  EXPECT_EQ(first.encode("hello<s>hello", false, true), (Ids{spaced, 1, word}));
  EXPECT_EQ(first.encode(" hello", false), Ids{spaced});
  json["pre_tokenizer"]["prepend_scheme"] = "always";
  json["pre_tokenizer"]["split"] = true;
  EXPECT_EQ(sample::load({{"tokenizer.json", json.dump()}}).encode("hello<s>hello hello", false, true),
            (Ids{spaced, 1, spaced, spaced}));
  json["pre_tokenizer"]["prepend_scheme"] = "never";
  EXPECT_EQ(sample::load({{"tokenizer.json", json.dump()}}).encode("hello hello", false),
            (Ids{word, spaced}));
}

// The library gets single words where that changes nothing, the whole text elsewhere; here both ways are
// taken.
TEST(SentencePiece, WordsAndWholeTextAgree) {
  auto pieces = sample::llama_pieces();
  const Tokenizer words = sample::load({{"tokenizer.model", sample::model_proto(pieces)}});
  pieces.push_back({"a▁b", -1000, 1});  // crosses a word border, so that text must stay whole
  const Tokenizer whole = sample::load({{"tokenizer.model", sample::model_proto(pieces)}});
  std::mt19937 random(3);
  const std::vector<std::string> parts = {"hello", " ", "  ", "he", "ll", "\u00e9", "▁", "\n", "x", "o "};
  for (int round = 0; round < 500; ++round) {
    std::string text;
    for (size_t i = random() % 12; i > 0; --i) text += parts[random() % parts.size()];
    EXPECT_EQ(words.encode(text, false), whole.encode(text, false)) << text;
  }
}

TEST(SentencePiece, RemovesExtraWhitespace) {
  sample::ProtoOptions options;
  options.remove_extra_whitespaces = true;
  auto pieces = sample::llama_pieces();
  const Tokenizer words = sample::load({{"tokenizer.model", sample::model_proto(pieces, options)}});
  pieces.push_back({"z▁z", -1000, 1});
  const Tokenizer whole = sample::load({{"tokenizer.model", sample::model_proto(pieces, options)}});
  for (const std::string text : {"  hello   hello ", " ", "", "▁", "hello▁ ", "\n ", "  \n  "}) {
    EXPECT_EQ(words.encode(text, false), whole.encode(text, false)) << '"' << text << '"';
  }
  EXPECT_EQ(words.decode(words.encode("  hello   hello ", false)), "hello hello");
}

TEST(SentencePiece, LoadsUnigramModels) {
  sample::ProtoOptions options;
  options.model_type = 1;
  const Tokenizer tokenizer =
      sample::load({{"tokenizer.model", sample::model_proto(sample::llama_pieces(), options)}});
  EXPECT_EQ(tokenizer.encode("hello hello", true),
            (Ids{1, tokenizer.id_of("▁hello").value(), tokenizer.id_of("▁hello").value()}));
}

TEST(SentencePiece, WithoutByteFallbackUnknownTextIsUnk) {
  auto pieces = sample::llama_pieces();
  std::erase_if(pieces, [](const auto& piece) { return piece.type == 6; });
  sample::ProtoOptions options;
  options.byte_fallback = false;
  const Tokenizer tokenizer = sample::load({{"tokenizer.model", sample::model_proto(pieces, options)}});
  const int32_t spaced = tokenizer.id_of("▁hello").value();
  EXPECT_EQ(tokenizer.encode("hello\u00e9\u00e9", false), (Ids{spaced, 0}));
  EXPECT_EQ(tokenizer.decode(Ids{spaced, 0}), "hello");
  EXPECT_EQ(tokenizer.decode(Ids{spaced, 0}, true), "hello<unk>");
}

TEST(MostBytes, BoundsEveryText) {
  const Tokenizer tokenizers[] = {
      sample::load({{"tokenizer.json", sample::byte_level_json().dump()}}),
      sample::load({{"tokenizer.json", sample::metaspace_json().dump()}}),
      sample::load({{"tokenizer.model", sample::model_proto(sample::llama_pieces())}})};
  for (const Tokenizer& tokenizer : tokenizers) {
    const auto of_one = tokenizer.most_bytes(1);
    ASSERT_TRUE(of_one);
    EXPECT_GE(*of_one, 5);
    EXPECT_LE(*of_one, 16);
    std::string text;
    for (const char* piece :
         {"hello", " ", "  ", "\xe4\xb8\x96", "<|bos|>", "a", "\n", "hell", "spinfer", "\xff"}) {
      for (int i = 0; i < 40; ++i) text += piece;
      EXPECT_LE(int64_t(text.size()), tokenizer.most_bytes(int64_t(tokenizer.encode(text, false).size())))
          << text;
    }
  }
}

TEST(MostBytes, SaysNothingWhereTextMayVanish) {
  sample::ProtoOptions options;
  options.remove_extra_whitespaces = true;
  EXPECT_FALSE(sample::load({{"tokenizer.model", sample::model_proto(sample::llama_pieces(), options)}})
                   .most_bytes(1));
  auto replaces = sample::byte_level_json();
  replaces["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", "aa"}}}, {"content", ""}};
  EXPECT_FALSE(sample::load({{"tokenizer.json", replaces.dump()}}).most_bytes(1));
  auto swallows = sample::byte_level_json();
  swallows["added_tokens"][2]["rstrip"] = true;
  EXPECT_FALSE(sample::load({{"tokenizer.json", swallows.dump()}}).most_bytes(1));
  auto unknown = sample::metaspace_json();
  unknown["model"]["byte_fallback"] = false;
  EXPECT_FALSE(sample::load({{"tokenizer.json", unknown.dump()}}).most_bytes(1));
}

}  // namespace
}  // namespace spinfer
