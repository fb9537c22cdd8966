// Damaged and hostile tokenizer files: one clear line naming the file, never a crash.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <random>

#include "tests/temporary_directory.h"
#include "tests/tokenizer/sample_tokenizers.h"
#include "tokenizer/file_set.h"
#include "tokenizer/tokenizer.h"

namespace spinfer {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

void expect_error(const std::string& error, std::string_view file, std::string_view part,
                  std::string_view name) {
  EXPECT_NE(error, "") << name << " was accepted";
  EXPECT_EQ(error.find(file), 0u) << name << ": " << error;
  EXPECT_EQ(error.rfind(file), 0u) << name << ": " << error;
  EXPECT_NE(error.find(part), std::string::npos) << name << ": " << error;
  EXPECT_EQ(error.find('\n'), std::string::npos) << name << ": " << error;
}

struct JsonRow {
  const char* name;
  std::function<void(json&)> damage;
  const char* message;
};

TEST(BadFiles, TokenizerJson) {
  const std::vector<JsonRow> rows = {
      {"no model", [](json& j) { j.erase("model"); }, "'model' is missing"},
      {"model is a list", [](json& j) { j["model"] = json::array(); }, "model: must be an object, is array"},
      {"Unigram", [](json& j) { j["model"]["type"] = "Unigram"; }, "'Unigram' is not supported"},
      {"type is a number", [](json& j) { j["model"]["type"] = 3; }, "'type' must be a string, is number"},
      {"no vocab", [](json& j) { j["model"].erase("vocab"); }, "'vocab' is missing"},
      {"vocab is a list", [](json& j) { j["model"]["vocab"] = json::array(); },
       "must be an object, is array"},
      {"id is a string", [](json& j) { j["model"]["vocab"]["h"] = "x"; }, "must be an integer, is string"},
      {"id is a fraction", [](json& j) { j["model"]["vocab"]["h"] = 1.5; }, "must be an integer"},
      {"negative id", [](json& j) { j["model"]["vocab"]["h"] = -1; }, "has id -1, legal are 0 ... 1048575"},
      {"huge id", [](json& j) { j["model"]["vocab"]["h"] = 1'000'000'000'000; }, "legal are 0 ... 1048575"},
      {"absurd id", [](json& j) { j["model"]["vocab"]["h"] = 18446744073709551615u; }, "too large"},
      {"duplicate id", [](json& j) { j["model"]["vocab"]["h"] = 7; }, "have the same id 7"},
      {"long piece", [](json& j) { j["model"]["vocab"][std::string(5000, 'a')] = 300; }, "5000 bytes"},
      {"no merges", [](json& j) { j["model"].erase("merges"); }, "'merges' is missing"},
      {"merges is an object", [](json& j) { j["model"]["merges"] = json::object(); }, "must be an array"},
      {"merge of an unknown piece", [](json& j) { j["model"]["merges"][1] = "l nope"; },
       "merges[1]: piece 'nope' is not in the vocabulary"},
      {"merge to an unknown piece", [](json& j) { j["model"]["merges"][1] = "l h"; },
       "merges[1]: piece 'lh' is not in the vocabulary"},
      {"merge of one piece", [](json& j) { j["model"]["merges"][1] = "ll"; },
       "merges[1]: 'll' is not two pieces"},
      {"merge is a number", [](json& j) { j["model"]["merges"][1] = 4; }, "merges[1] must be a string"},
      {"merge of three",
       [](json& j) {
         j["model"]["merges"][1] = {"l", "l", "l"};
       },
       "merges[1] must be"},
      {"unknown unk", [](json& j) { j["model"]["unk_token"] = "<nope>"; },
       "'<nope>' is not in the vocabulary"},
      {"suffix", [](json& j) { j["model"]["end_of_word_suffix"] = "</w>"; },
       "'end_of_word_suffix' is not supported"},
      {"dropout", [](json& j) { j["model"]["dropout"] = 0.1; }, "'dropout' is not supported"},
      {"byte_fallback is 1", [](json& j) { j["model"]["byte_fallback"] = 1; }, "must be true or false"},
      {"added_tokens is an object", [](json& j) { j["added_tokens"] = json::object(); }, "must be an array"},
      {"added token without id", [](json& j) { j["added_tokens"][0].erase("id"); }, "'id' is missing"},
      {"added token with huge id", [](json& j) { j["added_tokens"][0]["id"] = 1 << 30; },
       "is not in 0 ... 1048575"},
      {"added token takes an id", [](json& j) { j["added_tokens"][0]["id"] = 5; },
       "has id 5, which is piece"},
      {"added token is empty", [](json& j) { j["added_tokens"][0]["content"] = ""; }, "empty"},
      {"added token twice", [](json& j) { j["added_tokens"][1]["content"] = "<|bos|>"; }, "there twice"},
      {"single_word", [](json& j) { j["added_tokens"][0]["single_word"] = true; }, "single_word"},
      {"unknown normalizer",
       [](json& j) {
         j["normalizer"] = {{"type", "Lowercase"}};
       },
       "normalizer: type 'Lowercase' is not supported"},
      {"unknown step in a sequence",
       [](json& j) {
         j["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}, {{"type", "X"}}}}};
       },
       "normalizer.normalizers[1]: type 'X'"},
      {"unknown pre-tokenizer", [](json& j) { j["pre_tokenizer"]["type"] = "Whitespace"; }, "'Whitespace'"},
      {"unknown decoder", [](json& j) { j["decoder"]["type"] = "WordPiece"; }, "'WordPiece'"},
      {"unknown post-processor", [](json& j) { j["post_processor"]["type"] = "Other"; }, "'Other'"},
      {"BOS is no piece", [](json& j) { j["post_processor"]["single"][0]["SpecialToken"]["id"] = "<x>"; },
       "'<x>' is not in the vocabulary"},
      {"two tokens before the text",
       [](json& j) {
         j["post_processor"]["single"].insert(j["post_processor"]["single"].begin(),
                                              json{{"SpecialToken", {{"id", "<|eot|>"}}}});
       },
       "more than one token"},
      {"bad pattern",
       [](json& j) {
         j["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "("}}}, {"behavior", "Isolated"}};
       },
       "split pattern '('"},
      {"unknown behavior",
       [](json& j) {
         j["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Merged"}};
       },
       "behavior 'Merged'"},
      {"too many steps",
       [](json& j) {
         j["normalizer"] = {{"type", "Sequence"}, {"normalizers", json::array()}};
         for (int i = 0; i < 65; ++i) j["normalizer"]["normalizers"].push_back({{"type", "NFC"}});
       },
       "normalizer.normalizers[64]: more than 64 steps"},
      {"step without type", [](json& j) { j["normalizer"] = json::object(); }, "'type' is missing"},
      {"empty prepend",
       [](json& j) {
         j["normalizer"] = {{"type", "Prepend"}, {"prepend", ""}};
       },
       "has 0 bytes"},
      {"replace by a megabyte",
       [](json& j) {
         j["normalizer"] = {
             {"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", std::string(1 << 20, 'b')}};
       },
       "longer than 256 bytes"},
      {"no pieces",
       [](json& j) {
         j = {{"model", {{"vocab", json::object()}, {"merges", json::array()}}}};
       },
       "has no pieces"},
  };
  for (const JsonRow& row : rows) {
    json document = sample::byte_level_json();
    row.damage(document);
    expect_error(sample::load_error({{"tokenizer.json", document.dump()}}), "dir/tokenizer.json", row.message,
                 row.name);
  }
}

struct TextRow {
  const char* name;
  std::string content;
  const char* message;
};

TEST(BadFiles, NotJson) {
  const std::vector<TextRow> rows = {
      {"empty", "", "is empty"},
      {"cut", sample::byte_level_json().dump().substr(0, 1000), "is not valid JSON"},
      {"a list", "[]", "must be a JSON object, is array"},
      {"not UTF-8", "{\"a\": \"\xFF\"}", "is not valid JSON"},
      {"garbage behind a NUL", sample::byte_level_json().dump() + '\0' + "x", "a NUL byte"},
      {"binary", std::string("\0\1\2", 3), "is not valid JSON"},
      {"a deep nest", std::string(1 << 20, '['), "nested deeper than 64 levels"},
      {"millions of values", "[" + std::string(18 << 20, ','), "more than 8000000 values"},
  };
  for (const char* file :
       {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}) {
    for (const TextRow& row : rows) {
      const std::string error =
          file == std::string("tokenizer.json")
              ? sample::load_error({{file, row.content}})
              : sample::load_error({{file, row.content}, {"tokenizer.model", sample::ranks_file()}});
      expect_error(error, std::string("dir/") + file, row.message, row.name);
    }
  }
}

TEST(BadFiles, TokenizerConfig) {
  const std::vector<TextRow> rows = {
      {"bos_token is a number", R"({"bos_token": 1})", "'bos_token' must be a string"},
      {"bos_token has no content", R"({"bos_token": {}})", "'content' is missing"},
      {"add_bos_token is a string", R"({"add_bos_token": "yes"})", "must be true or false"},
      {"add_prefix_space is a string", R"({"add_prefix_space": "yes"})", "must be true or false"},
      {"legacy is a number", R"({"legacy": 0})", "must be true or false"},
      {"decoder is a list", R"({"added_tokens_decoder": []})", "must be an object"},
      {"key is no id", R"({"added_tokens_decoder": {"x1": {"content": "a"}}})", "'x1' is not an id"},
      {"huge id", R"({"added_tokens_decoder": {"99999999999": {"content": "a"}}})",
       "is not in 0 ... 1048575"},
      {"entry is a string", R"({"added_tokens_decoder": {"1": "a"}})", "must be an object"},
  };
  for (const TextRow& row : rows) {
    expect_error(sample::load_error(
                     {{"tokenizer_config.json", row.content}, {"tokenizer.model", sample::ranks_file()}}),
                 "dir/tokenizer_config.json", row.message, row.name);
  }
  expect_error(
      sample::load_error({{"added_tokens.json", R"({"a": "1"})"}, {"tokenizer.model", sample::ranks_file()}}),
      "dir/added_tokens.json", "must be an integer", "id is a string");
  expect_error(
      sample::load_error({{"added_tokens.json", R"({"a": -4})"}, {"tokenizer.model", sample::ranks_file()}}),
      "dir/added_tokens.json", "is not in 0 ... 1048575", "negative id");
}

TEST(BadFiles, VocabAndMerges) {
  const std::string vocab = sample::vocab_json(), merges = sample::merges_txt();
  const auto error = [](const std::string& v, const std::string& m) {
    return sample::load_error({{"vocab.json", v}, {"merges.txt", m}});
  };
  expect_error(error("[]", merges), "dir/vocab.json", "must be a JSON object", "list");
  expect_error(error(R"({"a": {}})", merges), "dir/vocab.json", "the id of 'a' is no integer",
               "object as id");
  expect_error(error(R"({"a": 0, "b": 0})", merges), "dir/vocab.json", "have the same id 0", "same id");
  expect_error(error(R"({"a": 1048576})", merges), "dir/vocab.json", "legal are 0 ... 1048575", "huge id");
  expect_error(error(vocab, "h\n"), "dir/merges.txt", "line 1: 'h' is not two pieces", "one piece");
  expect_error(error(vocab, "h e l\n"), "dir/merges.txt", "is not two pieces", "three pieces");
  expect_error(error(vocab, "#version\nh nope\n"), "dir/merges.txt", "line 2: piece 'nope'", "unknown piece");
  expect_error(error(vocab, std::string("h \0\xFF\n", 5)), "dir/merges.txt", "line 1", "binary");
  expect_error(sample::load_error({{"vocab.json", vocab}}), "dir/vocab.json", "needs merges.txt", "alone");
  expect_error(sample::load_error({{"gpt2-merges.txt", merges}}), "dir/gpt2-merges.txt",
               "needs gpt2-vocab.json", "alone");
}

TEST(BadFiles, Ranks) {
  const std::string good = sample::ranks_file();
  const std::vector<TextRow> rows = {
      {"no rank", "IQ==\n", "SentencePiece"},  // its first line makes it a ranks file or not
      {"no base64", good + "!!! 300\n", "'!!! 300' is not base64 and a rank"},
      {"rank twice", good + "aGVsbGE= 5\n", "have the same id 5"},
      {"piece twice", good + "aGU= 900\n", "is there twice"},
      {"huge rank", good + "aGVsbGE= 99999999\n", "legal are 0 ... 1048575"},
      {"absurd rank", good + "aGVsbGE= 99999999999999999999999\n", "is not base64 and a rank"},
      {"negative rank", good + "aGVsbGE= -1\n", "legal are 0 ... 1048575"},
      {"cut in mid-line", good.substr(0, good.size() - 4), "is not base64 and a rank"},
      {"bytes missing", good.substr(0, good.find(" 99\n") - 4), "byte 0x63 has no rank"},
      {"long piece", good + std::string(400, 'A') + " 300\n", "piece of 300 bytes"},
  };
  for (const TextRow& row : rows) {
    expect_error(sample::load_error({{"tokenizer.model", row.content}}), "dir/tokenizer.model", row.message,
                 row.name);
  }
}

TEST(BadFiles, SentencePieceModels) {
  using sample::model_proto;
  using sample::proto_bytes;
  const auto with = [](const std::function<void(std::vector<sample::Piece>&)>& damage) {
    auto pieces = sample::llama_pieces();
    damage(pieces);
    return model_proto(pieces);
  };
  const std::string good = with([](auto&) {});
  sample::ProtoOptions no_fallback;
  no_fallback.byte_fallback = false;
  sample::ProtoOptions bad_type;
  bad_type.model_type = 9;
  const std::vector<TextRow> rows = {
      {"empty", "", "is empty"},
      {"text", "hello\n", "is no SentencePiece model"},
      {"zeros", std::string(100, '\0'), "bad field number"},
      {"no pieces", proto_bytes(2, ""), "it has no pieces"},
      {"cut", good.substr(0, good.size() - 1), "truncated"},
      {"length beyond the end", std::string("\x0A\xFF\xFF\xFF\xFF\x0F"), "truncated"},
      {"endless number", std::string("\x0A") + std::string(20, '\xFF'), "longer than 10 bytes"},
      {"group", "\x0B", "wire type 3"},
      {"piece is a number", std::string("\x08\x01", 2), "wrong type"},
      {"empty piece", good + proto_bytes(1, ""), "piece of 0 bytes"},
      {"long piece", with([](auto& p) { p.push_back({std::string(5000, 'a')}); }), "piece of 5000 bytes"},
      {"piece with NUL", with([](auto& p) { p.push_back({std::string("a\0b", 3)}); }), "NUL"},
      {"piece not UTF-8", with([](auto& p) { p.push_back({"\xFF"}); }), "not UTF-8"},
      {"piece twice", with([](auto& p) { p.push_back({"he"}); }), "'he' is there twice"},
      {"score NaN", with([](auto& p) { p[261].score = std::numeric_limits<float>::quiet_NaN(); }),
       "not finite"},
      {"score infinite", with([](auto& p) { p.back().score = std::numeric_limits<float>::infinity(); }),
       "not finite"},
      {"type 7", with([](auto& p) { p.back().type = 7; }), "legal are 1 ... 6"},
      {"two unknowns", with([](auto& p) { p.back().type = 2; }), "2 unknown pieces"},
      {"no unknown", with([](auto& p) { p[0].type = 1; }), "0 unknown pieces"},
      {"255 byte pieces", with([](auto& p) { p.erase(p.begin() + 10); }), "255 byte pieces, must have 256"},
      {"bytes without fallback", model_proto(sample::llama_pieces(), no_fallback),
       "256 byte pieces, must have 0"},
      {"byte piece with another name", with([](auto& p) { p[10].text = "<0xZZ>"; }), "<0x00> ... <0xFF>"},
      {"model type 9", model_proto(sample::llama_pieces(), bad_type), "field 3 is 9"},
      {"65 nested user pieces", with([](auto& p) {
         for (int i = 1; i <= 65; ++i) p.push_back({std::string(i, '!'), 0, 4});
       }),
       "more than 64 user-defined pieces"},
  };
  for (const TextRow& row : rows) {
    expect_error(sample::load_error({{"tokenizer.model", row.content}}), "dir/tokenizer.model", row.message,
                 row.name);
  }
}

TEST(BadFiles, MorePiecesThanRows) {
  TokenizerHints hints;
  hints.vocab_size = 100;
  const std::string vocab = sample::vocab_json(), merges = sample::merges_txt();
  for (const std::string& error :
       {sample::load_error({{"tokenizer.json", sample::byte_level_json().dump()}}, hints),
        sample::load_error({{"tokenizer.model", sample::ranks_file()}}, hints),
        sample::load_error({{"tokenizer.model", sample::model_proto(sample::llama_pieces())}}, hints),
        sample::load_error({{"vocab.json", vocab}, {"merges.txt", merges}}, hints)}) {
    expect_error(error, "dir/", " pieces, the model's vocabulary only 100 rows", "too many pieces");
  }
}

// Every prefix and many random changes of sound files: an error or a working tokenizer, nothing else.
TEST(BadFiles, DamagedBytesNeverCrash) {
  std::mt19937 random(5);
  const std::string json = sample::byte_level_json().dump(),
                    spm = sample::model_proto(sample::llama_pieces());
  const auto try_load = [](const std::string& name, const std::string& content) {
    try {
      const Tokenizer tokenizer = sample::load({{name, content}});
      const std::string text = "hello \u00e9<s>";
      (void)tokenizer.decode(tokenizer.encode(text, true, true));
    } catch (const std::runtime_error& e) {
      EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos);
    }
  };
  for (const auto& [name, content] : {std::pair{"tokenizer.json", json}, std::pair{"tokenizer.model", spm}}) {
    for (int round = 0; round < 300; ++round) {
      try_load(name, content.substr(0, random() % content.size()));
      std::string changed = content;
      for (size_t i = 1 + random() % 4; i > 0; --i)
        changed[random() % changed.size()] = static_cast<char>(random());
      try_load(name, changed);
    }
  }
}

class Directory : public testing::Test {
 protected:
  std::string load_error() const {
    try {
      Tokenizer::load(dir_, {});
    } catch (const std::runtime_error& e) {
      return e.what();
    }
    return "";
  }
  test::TemporaryDirectory temporary_;
  fs::path dir_ = temporary_.path();
};

TEST_F(Directory, WithoutTokenizer) {
  EXPECT_FALSE(Tokenizer::present(dir_));
  expect_error(load_error(), dir_.string(), "looked for tokenizer.json, tokenizer.model", "empty directory");
  dir_ /= "missing";
  EXPECT_FALSE(Tokenizer::present(dir_));
  expect_error(load_error(), dir_.string(), "is not a directory", "no directory");
}

TEST_F(Directory, InPlaceOfAFile) {
  fs::create_directory(dir_ / "tokenizer.json");
  EXPECT_TRUE(Tokenizer::present(dir_));
  expect_error(load_error(), (dir_ / "tokenizer.json").string(), "is a directory", "directory");
}

TEST_F(Directory, WithAPipe) {
  ASSERT_EQ(::mkfifo((dir_ / "tokenizer.model").c_str(), 0600), 0);
  expect_error(load_error(), (dir_ / "tokenizer.model").string(), "is not a regular file", "pipe");
}

TEST_F(Directory, WithAHugeFile) {
  std::ofstream(dir_ / "merges.txt") << "x";
  fs::resize_file(dir_ / "merges.txt", (uintmax_t{64} << 20) + 1);  // sparse
  expect_error(load_error(), (dir_ / "merges.txt").string(), "has 67108865 bytes, more than the 67108864",
               "huge");
}

TEST_F(Directory, WithAGoodFile) {
  std::ofstream(dir_ / "tokenizer.json") << sample::byte_level_json().dump();
  EXPECT_TRUE(Tokenizer::present(dir_));
  EXPECT_EQ(Tokenizer::load(dir_, {}).encode("hello", false), std::vector<int32_t>{259});
}

}  // namespace
}  // namespace spinfer
