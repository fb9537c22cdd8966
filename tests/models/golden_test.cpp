// Forward passes against references computed by others: HF transformers in float32, and NumPy in float64.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/models/model_runner.h"
#include "tests/test_paths.h"

namespace spinfer::test {
namespace {

namespace fs = std::filesystem;

nlohmann::json read_json(const fs::path& path) {
  std::ifstream file(path);
  return nlohmann::json::parse(file);
}

/// Differences of log-probabilities from a golden.
struct Difference {
  double sum = 0, worst = 0;
  int64_t count = 0;
  void add(double a, double b) {
    const double d = std::abs(a - b);
    ASSERT_FALSE(std::isnan(d)) << a << " against " << b;
    sum += d;
    worst = std::max(worst, d);
    ++count;
  }
  double mean() const { return sum / double(count); }
};

int32_t argmax(const float* row, int64_t vocab) {
  return int32_t(std::max_element(row, row + vocab) - row);
}

/// Continues from `next` (the first greedy token); compares up to the first step whose gap is below 0.02.
int check_greedy(ModelRunner& runner, int32_t next, const std::vector<int32_t>& expected,
                 const std::vector<double>& gaps) {
  int equal = 0;
  for (size_t i = 0; i < expected.size() && gaps[i] >= 0.02; ++i) {
    EXPECT_EQ(next, expected[i]) << "greedy token " << i;
    if (next != expected[i]) break;
    ++equal;
    next = argmax(runner.append({next}).data(), runner.model().config.vocab_size);
  }
  return equal;
}

/// Directories with a golden.json: under the assets, or in this repository.
class HfGolden : public testing::TestWithParam<const char*> {};

fs::path golden_directory(const std::string& name) {
  if (name.starts_with("demo-")) return test::source_directory() / "tests" / "data" / name;
  return test::assets_directory() / "hf_goldens" / name;
}

TEST_P(HfGolden, LogProbabilitiesAndGreedyTokens) {
  const fs::path dir = golden_directory(GetParam());
  if (!fs::exists(dir)) GTEST_SKIP() << dir << " is absent";
  auto runner = ModelRunner::load(dir);
  const int64_t vocab = runner.model().config.vocab_size;
  Difference difference;
  int greedy = 0;
  const auto goldens = read_json(dir / "golden.json");
  for (const auto& golden : goldens["cases"]) {
    runner.restart();
    const auto ids = golden["ids"].get<std::vector<int32_t>>();
    const auto logits = runner.append(ids);
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto row = log_softmax(logits.data() + int64_t(i) * vocab, vocab);
      difference.add(row[size_t(ids[i + 1])], golden["token_logprobs"][i].get<double>());
    }
    const float* last = logits.data() + int64_t(ids.size() - 1) * vocab;
    const auto row = log_softmax(last, vocab);
    for (size_t i = 0; i < golden["last_top8_ids"].size(); ++i) {
      difference.add(row[golden["last_top8_ids"][i].get<size_t>()],
                     golden["last_top8_logprobs"][i].get<double>());
    }
    greedy += check_greedy(runner, argmax(last, vocab), golden["greedy"], golden["greedy_gap"]);
  }
  std::printf("%s: mean %.5f worst %.5f nat over %ld, %d greedy tokens equal\n", GetParam(),
              difference.mean(), difference.worst, long(difference.count), greedy);
  EXPECT_GT(difference.count, 100);
  EXPECT_LT(difference.mean(), 0.01);
  EXPECT_LT(difference.worst, 0.03);
  EXPECT_GT(greedy, 10);
}

INSTANTIATE_TEST_SUITE_P(All, HfGolden,
                         testing::Values("llama-mha-untied", "llama-gqa-rope-llama3", "opt-preln",
                                         "opt-350m-style", "qwen2-tied", "demo-llama", "demo-opt"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

class TrainedGolden : public testing::TestWithParam<const char*> {};

TEST_P(TrainedGolden, LogitsAndGreedyTokens) {
  const fs::path dir = test::assets_directory() / "models" / GetParam();
  if (!fs::exists(dir)) GTEST_SKIP() << dir << " is absent";
  auto runner = ModelRunner::load(dir);
  const int64_t vocab = runner.model().config.vocab_size;
  Difference difference;
  const auto goldens = read_json(dir / "golden" / "golden.json");
  for (const auto& golden : goldens["prompts"]) {
    runner.restart();
    const auto ids = golden["ids"].get<std::vector<int32_t>>();
    std::vector<float> expected(ids.size() * size_t(vocab));
    std::ifstream file(dir / "golden" / golden["logits_file"].get<std::string>(), std::ios::binary);
    file.read(reinterpret_cast<char*>(expected.data()), std::streamsize(expected.size() * sizeof(float)));
    ASSERT_EQ(size_t(file.gcount()), expected.size() * sizeof(float));
    const auto logits = runner.append(ids);
    for (size_t i = 0; i < ids.size(); ++i) {
      const auto row = log_softmax(logits.data() + int64_t(i) * vocab, vocab);
      const auto golden_row = log_softmax(expected.data() + int64_t(i) * vocab, vocab);
      const int32_t best = argmax(expected.data() + int64_t(i) * vocab, vocab);
      difference.add(row[size_t(best)], golden_row[size_t(best)]);
      if (i + 1 < ids.size()) difference.add(row[size_t(ids[i + 1])], golden_row[size_t(ids[i + 1])]);
    }
    // One gap, the smallest, is given for the whole continuation.
    const auto greedy = golden["greedy_new_ids"].get<std::vector<int32_t>>();
    if (golden["min_top1_top2_gap"].get<double>() < 0.02) continue;
    const int length = std::min<int>(int(greedy.size()), 200);
    const float* last = logits.data() + int64_t(ids.size() - 1) * vocab;
    EXPECT_EQ(check_greedy(runner, argmax(last, vocab), {greedy.begin(), greedy.begin() + length},
                           std::vector<double>(size_t(length), 1.0)),
              length)
        << golden["prompt"];
  }
  std::printf("%s: mean %.5f worst %.5f nat over %ld\n", GetParam(), difference.mean(), difference.worst,
              long(difference.count));
  EXPECT_GT(difference.count, 20);
  EXPECT_LT(difference.mean(), 0.01);
  EXPECT_LT(difference.worst, 0.15);
}

INSTANTIATE_TEST_SUITE_P(All, TrainedGolden, testing::Values("stories260K-hf", "babyllama105-hf"),
                         [](const auto& info) {
                           return std::string(info.param).substr(0, std::string(info.param).find('-'));
                         });

}  // namespace
}  // namespace spinfer::test
