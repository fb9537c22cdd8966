// The real tokenizers against Hugging Face's ids, and decode(encode(text)) == text on all texts of the
// assets.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/test_paths.h"
#include "tokenizer/file_set.h"
#include "tokenizer/tokenizer.h"

namespace spinfer {
namespace {

const std::filesystem::path kAssets = test::assets_directory();

std::string read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

struct Case {
  const char* name;
  const char* dir;
  std::vector<const char*> hidden;  // files of `dir` not given to the loader
  const char* golden;               // "" if there is none
  const char* model_type;
  int32_t bos;  // -1: adds none

  friend std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.name; }
};

Tokenizer load(const Case& c) {
  const FileSet all = FileSet::read(kAssets / c.dir);
  std::vector<TokenizerFile> files;
  for (const std::string_view name : FileSet::kKnownNames) {
    const bool hidden =
        std::any_of(c.hidden.begin(), c.hidden.end(), [&](const char* h) { return name == h; });
    if (all.find(name) != nullptr && !hidden) files.push_back(*all.find(name));
  }
  TokenizerHints hints;
  hints.model_type = c.model_type;
  return Tokenizer::from_files(FileSet(c.dir, std::move(files)), hints);
}

class Golden : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(kAssets / GetParam().dir)) GTEST_SKIP() << "no assets in " << kAssets;
  }
};

TEST_P(Golden, EncodesTheGoldenInputs) {
  const Case& c = GetParam();
  if (*c.golden == '\0') GTEST_SKIP() << "no golden file for " << c.name;
  const Tokenizer tokenizer = load(c);
  const auto base = kAssets / "golden_tokenization" / (std::string("ggml-vocab-") + c.golden);
  const std::string inputs = read_file(base.string() + ".gguf.inp");
  std::istringstream expected(read_file(base.string() + ".gguf.out"));
  const std::string separator = "\n__ggml_vocab_test__\n";
  int cases = 0;
  for (size_t at = 0; at < inputs.size(); ++cases) {
    const size_t end = inputs.find(separator, at);
    ASSERT_NE(end, std::string::npos);
    const std::string input = inputs.substr(at, end - at);
    at = end + separator.size();
    std::string line;
    ASSERT_TRUE(std::getline(expected, line));
    std::istringstream numbers(line);
    std::vector<int32_t> ids(std::istream_iterator<int32_t>(numbers), {});
    EXPECT_EQ(tokenizer.encode(input, false), ids)
        << "input " << cases << ": " << nlohmann::json(input).dump();
    if (c.bos >= 0) ids.insert(ids.begin(), c.bos);
    EXPECT_EQ(tokenizer.encode(input, true), ids);
    EXPECT_EQ(tokenizer.decode(ids), input);
  }
  EXPECT_EQ(cases, 46);
}

TEST_P(Golden, DecodesAllTextsToThemselves) {
  const Tokenizer tokenizer = load(GetParam());
  int texts = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kAssets / "text")) {
    const std::string text = read_file(entry.path());
    const std::vector<int32_t> ids = tokenizer.encode(text, true);
    // Not EXPECT_EQ, which would print megabytes.
    EXPECT_TRUE(tokenizer.decode(ids) == text) << entry.path();
    EXPECT_LT(ids.size(), text.size() / 2) << entry.path();
    ++texts;
  }
  EXPECT_GT(texts, 0);
}

TEST_P(Golden, ReportsBos) {
  const Case& c = GetParam();
  const Tokenizer tokenizer = load(c);
  EXPECT_EQ(tokenizer.adds_bos(), c.bos >= 0);
  if (c.bos >= 0) {
    EXPECT_EQ(tokenizer.bos_id(), c.bos);
  }
  EXPECT_EQ(tokenizer.encode("", true), c.bos >= 0 ? std::vector<int32_t>{c.bos} : std::vector<int32_t>{});
}

INSTANTIATE_TEST_SUITE_P(
    Tokenizers, Golden,
    testing::Values(Case{"Llama2Model", "tokenizers/llama2", {"tokenizer.json"}, "llama-spm", "llama", 1},
                    Case{"Llama2Json", "tokenizers/llama2", {"tokenizer.model"}, "llama-spm", "llama", 1},
                    Case{"Llama2Both", "tokenizers/llama2", {}, "llama-spm", "llama", 1},
                    Case{"Llama3Ranks", "tokenizers/llama3", {}, "llama-bpe", "llama", 128000},
                    Case{"Gpt2", "tokenizers/gpt2", {}, "gpt-2", "gpt2", -1},
                    Case{"Opt", "tokenizers/opt", {}, "roberta-bpe", "opt", 2},
                    Case{"OptWithoutConfig", "tokenizers/opt", {}, "roberta-bpe", "", 2}),
    [](const auto& info) { return info.param.name; });

TEST(Golden, TrainedModelsEncodeTheirPrompts) {
  for (const std::string name : {"stories260K-hf", "babyllama105-hf"}) {
    const auto dir = kAssets / "models" / name;
    if (!std::filesystem::exists(dir)) GTEST_SKIP() << "no assets in " << kAssets;
    const Tokenizer tokenizer = Tokenizer::load(dir, {});
    const auto golden = nlohmann::json::parse(read_file(dir / "golden" / "golden.json"));
    ASSERT_FALSE(golden["prompts"].empty());
    for (const auto& prompt : golden["prompts"]) {
      const auto ids = prompt["ids"].get<std::vector<int32_t>>();
      EXPECT_EQ(tokenizer.encode(prompt["prompt"].get<std::string>(), true), ids)
          << name << ": " << prompt["prompt"];
      auto whole = ids;
      const auto added = prompt["greedy_new_ids"].get<std::vector<int32_t>>();
      whole.insert(whole.end(), added.begin(), added.end());
      EXPECT_TRUE(tokenizer.decode(whole).starts_with(tokenizer.decode(ids)));
    }
  }
}

}  // namespace
}  // namespace spinfer
