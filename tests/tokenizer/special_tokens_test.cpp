// BOS, EOS, special tokens in text, added tokens, and which files win.
#include <gtest/gtest.h>

#include "tests/tokenizer/sample_tokenizers.h"
#include "tokenizer/tokenizer.h"

namespace spinfer {
namespace {

using Ids = std::vector<int32_t>;
using sample::kBos;
using sample::kEot;
using sample::kSpinfer;

TEST(SpecialTokens, AreTextUnlessAskedFor) {
  const Tokenizer tokenizer = sample::load({{"tokenizer.json", sample::byte_level_json().dump()}});
  const std::string text = "hello<|eot|>hello";
  EXPECT_EQ(tokenizer.encode(text, false, true), (Ids{259, kEot, 259}));
  const Ids plain = tokenizer.encode(text, false);
  EXPECT_EQ(std::count(plain.begin(), plain.end(), kEot), 0);
  EXPECT_EQ(tokenizer.decode(plain), text);
}

TEST(SpecialTokens, AreDroppedByDecodeUnlessKept) {
  const Tokenizer tokenizer = sample::load({{"tokenizer.json", sample::byte_level_json().dump()}});
  const Ids ids = {kBos, 259, kEot, kSpinfer};
  EXPECT_EQ(tokenizer.decode(ids), "hellospinfer");
  EXPECT_EQ(tokenizer.decode(ids, true), "<|bos|>hello<|eot|>spinfer");
  EXPECT_EQ(tokenizer.piece_bytes(kEot), "<|eot|>");
  EXPECT_TRUE(tokenizer.is_special(kEot));
  EXPECT_FALSE(tokenizer.is_special(kSpinfer));
  EXPECT_FALSE(tokenizer.is_special(-1));
  EXPECT_FALSE(tokenizer.is_special(1 << 30));
  EXPECT_EQ(tokenizer.id_of("<|eot|>"), kEot);
  EXPECT_EQ(tokenizer.id_of("no piece"), std::nullopt);
}

TEST(SpecialTokens, OrdinaryAddedTokensAreAlwaysFound) {
  const Tokenizer tokenizer = sample::load({{"tokenizer.json", sample::byte_level_json().dump()}});
  EXPECT_EQ(tokenizer.encode("xspinfer", false), (Ids{'x', kSpinfer}));
}

TEST(SpecialTokens, ConfigDecidesAboutBos) {
  const std::string json = sample::byte_level_json().dump();
  const Tokenizer without =
      sample::load({{"tokenizer.json", json}, {"tokenizer_config.json", R"({"add_bos_token": false})"}});
  EXPECT_EQ(without.encode("hello", true), Ids{259});
  EXPECT_EQ(without.bos_id(), kBos);
  EXPECT_FALSE(without.adds_bos());
}

TEST(SpecialTokens, BosFromTheModelsConfigIsNotPutFirst) {
  auto json = sample::byte_level_json();
  json["post_processor"] = nullptr;
  TokenizerHints hints;
  hints.bos_id = 7;
  const Tokenizer tokenizer = sample::load({{"tokenizer.json", json.dump()}}, hints);
  EXPECT_EQ(tokenizer.bos_id(), 7);
  EXPECT_EQ(tokenizer.encode("hello", true), Ids{259});
}

TEST(SpecialTokens, EosFromHintsThenConfig) {
  const std::string json = sample::byte_level_json().dump();
  const std::string config = R"({"eos_token": {"content": "<|eot|>", "lstrip": false}})";
  EXPECT_EQ(sample::load({{"tokenizer.json", json}, {"tokenizer_config.json", config}}).eos_ids(), Ids{kEot});
  EXPECT_EQ(sample::load({{"tokenizer.json", json}, {"special_tokens_map.json", config}}).eos_ids(),
            Ids{kEot});
  TokenizerHints hints;
  hints.eos_ids = {5, 6};
  EXPECT_EQ(sample::load({{"tokenizer.json", json}, {"tokenizer_config.json", config}}, hints).eos_ids(),
            (Ids{5, 6}));
  EXPECT_EQ(sample::load({{"tokenizer.json", json}}).eos_ids(), Ids{});
  EXPECT_EQ(sample::load({{"tokenizer.model", sample::model_proto(sample::llama_pieces())}}).eos_ids(),
            Ids{2});
}

TEST(SpecialTokens, RobertaPostProcessorGivesBos) {
  auto json = sample::byte_level_json();
  json["post_processor"] = {
      {"type", "RobertaProcessing"}, {"sep", {"<|eot|>", kEot}}, {"cls", {"<|bos|>", kBos}}};
  EXPECT_EQ(sample::load({{"tokenizer.json", json.dump()}}).encode("hello", true), (Ids{kBos, 259}));
}

TEST(SpecialTokens, AddedTokensBesideASentencePieceModel) {
  const std::string model = sample::model_proto(sample::llama_pieces());
  const int32_t next = static_cast<int32_t>(sample::llama_pieces().size());
  const std::string decoder = R"({"added_tokens_decoder": {"1": {"content": "<s>", "special": true}, ")" +
                              std::to_string(next) + R"(": {"content": "<pad>", "special": true}, ")" +
                              std::to_string(next + 1) + R"(": {"content": "tool", "special": false}}})";
  for (const auto& [name, content, special] :
       {std::tuple{"tokenizer_config.json", decoder, true},
        std::tuple{"added_tokens.json",
                   R"({"<pad>": )" + std::to_string(next) + R"(, "tool": )" + std::to_string(next + 1) + "}",
                   false}}) {
    const Tokenizer tokenizer = sample::load({{"tokenizer.model", model}, {name, content}});
    EXPECT_EQ(tokenizer.vocab_size(), next + 2);
    EXPECT_EQ(tokenizer.encode("<pad>", false, true), Ids{next});
    EXPECT_EQ(tokenizer.is_special(next), special);
    EXPECT_EQ(tokenizer.encode("tool", false), Ids{next + 1});
    EXPECT_EQ(tokenizer.decode(Ids{next + 1}), "tool");
  }
}

// LLaMA 3.1 gives other names to ids that the ranks file only reserves.
TEST(SpecialTokens, ConfigRenamesReservedTokens) {
  const Tokenizer tokenizer =
      sample::load({{"tokenizer.model", sample::ranks_file()},
                    {"tokenizer_config.json",
                     R"({"added_tokens_decoder": {"270": {"content": "<|eom_id|>", "special": true}}})"}});
  EXPECT_EQ(tokenizer.id_of("<|eom_id|>"), 270);
  EXPECT_EQ(tokenizer.id_of("<|reserved_special_token_4|>"), std::nullopt);
  EXPECT_EQ(tokenizer.encode("<|eom_id|>", false, true), Ids{270});
  EXPECT_EQ(tokenizer.piece_bytes(270), "<|eom_id|>");
}

TEST(SpecialTokens, OptPutsItsEosFirst) {
  const auto vocab_with = [](const std::vector<std::string>& first) {
    auto vocab = nlohmann::json::object();
    for (size_t i = 0; i < first.size(); ++i) vocab[first[i]] = i;
    const auto bytes = nlohmann::json::parse(sample::vocab_json());
    for (const auto& [piece, id] : bytes.items()) {
      vocab[piece] = id.get<int>() + static_cast<int>(first.size());
    }
    return vocab.dump();
  };
  const std::string merges = sample::merges_txt();
  TokenizerHints opt;
  opt.model_type = "opt";
  const std::string fairseq = vocab_with({"<s>", "<pad>", "</s>", "<unk>"});
  EXPECT_EQ(sample::load({{"vocab.json", fairseq}, {"merges.txt", merges}}, opt).encode("hello", true),
            (Ids{2, 263}));
  EXPECT_EQ(sample::load({{"gpt2-vocab.json", fairseq}, {"gpt2-merges.txt", merges}}).encode("hello", true),
            (Ids{2, 263}));
  const Tokenizer gpt2 =
      sample::load({{"vocab.json", vocab_with({"<|endoftext|>"})}, {"merges.txt", merges}});
  EXPECT_EQ(gpt2.encode("hello", true), Ids{260});
  EXPECT_EQ(gpt2.bos_id(), 0);
  EXPECT_EQ(gpt2.eos_ids(), Ids{0});
  EXPECT_EQ(gpt2.encode("<|endoftext|>", false, true), Ids{0});
  EXPECT_EQ(gpt2.decode(Ids{0, 260}), "hello");
}

TEST(Files, TokenizerJsonComesFirstThenModelThenVocab) {
  const std::string json = sample::byte_level_json().dump(),
                    model = sample::model_proto(sample::llama_pieces());
  const std::string vocab = sample::vocab_json(), merges = sample::merges_txt();
  EXPECT_EQ(sample::load({{"vocab.json", vocab},
                          {"merges.txt", merges},
                          {"tokenizer.model", model},
                          {"tokenizer.json", json}})
                .vocab_size(),
            265);
  EXPECT_EQ(
      sample::load({{"vocab.json", vocab}, {"merges.txt", merges}, {"tokenizer.model", model}}).vocab_size(),
      static_cast<int32_t>(sample::llama_pieces().size()));
  EXPECT_EQ(sample::load({{"vocab.json", vocab}, {"merges.txt", merges}}).vocab_size(), 262);
}

// Found by the fuzz target: ids need not follow each other without gaps.
TEST(Decode, GapsInTheIdsAreNoText) {
  auto json = sample::byte_level_json();
  json["model"]["vocab"]["xyz"] = 900;
  const Tokenizer from_json = sample::load({{"tokenizer.json", json.dump()}});
  const Tokenizer from_ranks = sample::load({{"tokenizer.model", sample::ranks_file() + "eHl6 900\n"}});
  const std::string config = R"({"added_tokens_decoder": {"900": {"content": "xyz"}}})";
  const Tokenizer from_config =
      sample::load({{"tokenizer.model", sample::ranks_file()}, {"tokenizer_config.json", config}});
  const Tokenizer from_vocab =
      sample::load({{"vocab.json", json["model"]["vocab"].dump()}, {"merges.txt", sample::merges_txt()}});
  for (const Tokenizer* tokenizer : {&from_json, &from_ranks, &from_config, &from_vocab}) {
    EXPECT_EQ(tokenizer->encode("hello", false), Ids{259});
    EXPECT_EQ(tokenizer->decode(Ids{259, 700, 900}), "helloxyz");
    EXPECT_EQ(tokenizer->piece_bytes(700), "");
    EXPECT_FALSE(tokenizer->is_special(700));
  }
}

TEST(Decode, RowsWithoutAPieceAreNoText) {
  TokenizerHints hints;
  hints.vocab_size = 300;
  const Tokenizer tokenizer = sample::load({{"tokenizer.json", sample::byte_level_json().dump()}}, hints);
  EXPECT_EQ(tokenizer.decode(Ids{259, 299, 259}), "hellohello");
  EXPECT_EQ(tokenizer.piece_bytes(299), "");
  for (const int32_t bad : {300, -1, 1 << 30}) {
    EXPECT_THROW(tokenizer.decode(Ids{bad}), std::runtime_error);
    EXPECT_THROW(tokenizer.piece_bytes(bad), std::runtime_error);
  }
}

}  // namespace
}  // namespace spinfer
