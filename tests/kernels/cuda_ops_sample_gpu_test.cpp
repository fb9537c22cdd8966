// CUDA sampling and log-probabilities against the CPU's on the same logits. Skipped where there is no GPU.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/check.h"
#include "tests/kernels/cuda_ops.h"

namespace spinfer::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

/// What rows refer to.
struct Lists {
  std::vector<int32_t> seen = {};
  std::vector<TokenBias> biases = {};
};

class CudaSample : public CudaOps {
 protected:
  std::vector<int32_t> on_cpu(const std::vector<float>& logits, int vocab, const std::vector<SampleRow>& rows,
                              const Lists& lists) {
    std::vector<int32_t> ids(rows.size(), -7);
    cpu_.ops().sample(cpu_.context(), {.logits = logits.data(),
                                       .n = int(rows.size()),
                                       .vocab = vocab,
                                       .rows = rows.data(),
                                       .seen = lists.seen.data(),
                                       .ids = ids.data(),
                                       .biases = lists.biases.data()});
    return ids;
  }
  std::vector<int32_t> on_device(const std::vector<float>& logits, int vocab,
                                 const std::vector<SampleRow>& rows, const Lists& lists = {}) {
    const auto gpu_logits = on_gpu(logits);
    const auto gpu_rows = on_gpu(rows);
    const auto gpu_seen = on_gpu(lists.seen), ids = on_gpu(std::vector<int32_t>(rows.size(), -7));
    const auto gpu_biases = on_gpu(lists.biases);
    ops().sample(context(), {.logits = gpu_logits.data(),
                             .n = int(rows.size()),
                             .vocab = vocab,
                             .rows = gpu_rows.data(),
                             .seen = lists.seen.empty() ? nullptr : gpu_seen.data(),
                             .ids = ids.data(),
                             .biases = lists.biases.empty() ? nullptr : gpu_biases.data()});
    const auto result = ids.get();
    const auto after = gpu_logits.get();  // compared as bytes: they may hold NaN
    EXPECT_EQ(std::memcmp(after.data(), logits.data(), logits.size() * sizeof(float)), 0)
        << "sampling changed the logits";
    return result;
  }
  int32_t one(const std::vector<float>& logits, const SampleRow& row) {
    return on_device(logits, int(logits.size()), {row})[0];
  }
};

/// Every way to sample, many steps each.
std::vector<SampleRow> many_rows(Random& random, int count, Lists& lists, int vocab) {
  std::vector<SampleRow> rows;
  for (int i = 0; i < count; ++i) {
    SampleRow row{.temperature = i % 5 == 0 ? 0.0f : 0.5f + 0.25f * float(i % 4),
                  .top_k = i % 3 == 0 ? 0 : 1 + random.below(200),
                  .top_p = i % 2 ? 0.6f + 0.005f * float(i % 70) : 1.0f,
                  .min_p = i % 7 == 0 ? 0.03f : 0.0f,
                  .repeat_penalty = i % 4 ? 1.0f : 1.3f,
                  .seen_begin = int32_t(lists.seen.size()),
                  .bias_begin = int32_t(lists.biases.size()),
                  .step = uint32_t(i),
                  .seed = uint64_t(1000 + i)};
    for (int j = 0; j < std::min(i % 6, vocab); ++j)
      lists.seen.push_back(vocab - 1 - j * std::max(1, vocab / 6));
    for (int j = 0; j < std::min(i % 11, vocab) && i % 3 == 0; ++j)
      lists.biases.push_back({vocab - 1 - j * std::max(1, vocab / 11), random.gaussian(4)});
    row.seen_end = int32_t(lists.seen.size());
    row.bias_end = int32_t(lists.biases.size());
    rows.push_back(row);
  }
  return rows;
}

TEST_F(CudaSample, TakesTheCpusTokens) {
  Random random(1);
  for (const int vocab : {1, 2, 31, 37, 1003, 2048, 32000, 50272, 128256, 151936}) {
    const int n = vocab > 10000 ? 24 : 120;
    std::vector<float> logits(size_t(n) * vocab);
    for (float& x : logits) x = random.gaussian(3);
    for (size_t i = 0; i < logits.size(); i += 97) logits[i] = -kInf;
    for (int row = 0; row < n; ++row) logits[size_t(row) * vocab + size_t(random.below(vocab))] = 9;
    Lists lists;
    const auto rows = many_rows(random, n, lists, vocab);
    const auto want = on_cpu(logits, vocab, rows, lists), got = on_device(logits, vocab, rows, lists);
    for (int i = 0; i < n; ++i)
      EXPECT_EQ(got[size_t(i)], want[size_t(i)])
          << "vocabulary " << vocab << " row " << i << " temperature " << rows[size_t(i)].temperature
          << " top-k " << rows[size_t(i)].top_k << " top-p " << rows[size_t(i)].top_p;
  }
}

// Ties at the boundary, more equal logits than the kernel's list holds, and a single bin.
TEST_F(CudaSample, TiesAndFlatDistributions) {
  for (const int vocab : {4, 1000, 6000, 40000}) {
    std::vector<float> logits, flat(size_t(vocab), 1.0f), steps(static_cast<size_t>(vocab));
    for (int i = 0; i < vocab; ++i) steps[size_t(i)] = float(i * 7 % vocab / (vocab / 4)) * 0.5f;
    std::vector<SampleRow> rows;
    for (int i = 0; i < 60; ++i) {
      logits.insert(logits.end(), i % 2 ? flat.begin() : steps.begin(), i % 2 ? flat.end() : steps.end());
      rows.push_back({.temperature = 1,
                      .top_k = i % 3 ? (vocab * (i % 4 + 1)) / 5 : 0,
                      .top_p = i % 5 ? 0.5f : 1.0f,
                      .step = uint32_t(i),
                      .seed = 3});
    }
    EXPECT_EQ(on_device(logits, vocab, rows), on_cpu(logits, vocab, rows, {})) << vocab;
  }
  std::vector<float> greedy(1003, 1.0f);
  greedy[517] = greedy[900] = 2.0f;
  EXPECT_EQ(one(greedy, {}), 517);
  EXPECT_EQ(one({0.0f, -0.0f, 0.0f}, {}), 0);
  EXPECT_EQ(one({-kInf, -5, -3}, {}), 2);
}

TEST_F(CudaSample, ExtremeTemperaturesAndTheSmallestU) {
  EXPECT_EQ(one({1, 1.001f, 0.5f}, {.temperature = 1e-30f}), 1);
  const uint64_t seed = 0 - 0x9e3779b97f4a7c15ull;
  ASSERT_EQ(sample_uniform(seed, 0), 0.0f);
  EXPECT_EQ(one({-kInf, -kInf, 0, 0}, {.temperature = 1, .seed = seed}), 2);
  EXPECT_EQ(one({0, 5, 0, 5}, {.temperature = 1, .top_p = 1e-6f}), 1);
  EXPECT_EQ(one({0, 5, 0, 5}, {.temperature = 1, .min_p = 1, .seed = seed}), 1);
}

TEST_F(CudaSample, DoesNotDependOnTheBatch) {
  Random random(3);
  constexpr int kRows = 17, kVocab = 5017;
  std::vector<float> logits(kRows * kVocab);
  for (float& x : logits) x = random.gaussian(1);
  Lists lists;
  const auto rows = many_rows(random, kRows, lists, kVocab);
  const auto batch = on_device(logits, kVocab, rows, lists);
  for (size_t i = 0; i < kRows; ++i) {
    const std::vector<float> alone(logits.begin() + std::ptrdiff_t(i * kVocab),
                                   logits.begin() + std::ptrdiff_t((i + 1) * kVocab));
    EXPECT_EQ(on_device(alone, kVocab, {rows[i]}, lists)[0], batch[i]) << i;
  }
}

TEST_F(CudaSample, RowsThatCannotBeSampledGetNoToken) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN(), kInf}) {
    for (const int vocab : {37, 5000}) {
      for (const int position : {0, 5, vocab - 1}) {
        std::vector<float> logits(3 * size_t(vocab), 1.0f);
        logits[size_t(vocab + position)] = bad;
        for (const SampleRow& row :
             {SampleRow{}, SampleRow{.temperature = 1}, SampleRow{.temperature = 1, .top_k = 3}}) {
          const auto ids = on_device(logits, vocab, {row, row, row});
          EXPECT_GE(ids[0], 0);
          EXPECT_EQ(ids[1], kNoToken) << bad << " at " << position;
          EXPECT_GE(ids[2], 0);
        }
      }
    }
  }
  EXPECT_EQ(one({-kInf, -kInf}, {}), kNoToken);
  EXPECT_THROW(on_device({1, 2}, 2, {{.repeat_penalty = 2, .seen_end = 1}}, {.seen = {2}}), Error);
  EXPECT_THROW(on_device({1, 2}, 2, {{.bias_end = 1}}, {.biases = {{2, 1.0f}}}), Error);
}

TEST_F(CudaSample, LogprobsOfRowsThatCannotBeSampledAreNan) {
  constexpr int kVocab = 1003, kTop = 3;
  std::vector<float> logits(2 * kVocab, 1.0f);
  logits[kVocab + 700] = NAN;
  const auto gpu_logits = on_gpu(logits), target_logprobs = on_gpu(std::vector<float>(2, 0)),
             top_logprobs = on_gpu(std::vector<float>(2 * kTop, 0));
  const auto targets = on_gpu(std::vector<int32_t>(2, 4)), ids = on_gpu(std::vector<int32_t>(2 * kTop, -7));
  ops().logprobs(context(), {.logits = gpu_logits.data(),
                             .n = 2,
                             .vocab = kVocab,
                             .targets = targets.data(),
                             .target_logprobs = target_logprobs.data(),
                             .top = kTop,
                             .top_ids = ids.data(),
                             .top_logprobs = top_logprobs.data()});
  EXPECT_EQ(ids.get(), (std::vector<int32_t>{0, 1, 2, 0, 1, 2}));
  EXPECT_TRUE(std::isfinite(target_logprobs.get()[0]));
  EXPECT_TRUE(std::isnan(target_logprobs.get()[1]));
  for (int i = 0; i < kTop; ++i) EXPECT_TRUE(std::isnan(top_logprobs.get()[size_t(kTop + i)])) << i;
}

TEST_F(CudaSample, LogprobsAreTheCpus) {
  Random random(5);
  for (const int vocab : {1, 5, 1003, 50272, 151936}) {
    const int n = 7, top = std::min(vocab, 20);
    std::vector<float> logits(size_t(n) * vocab);
    for (float& x : logits) x = std::round(random.gaussian(3) * 8) / 8;  // with ties
    std::vector<int32_t> targets;
    for (int i = 0; i < n; ++i) targets.push_back(i == 3 ? -1 : random.below(vocab));
    std::vector<float> want(static_cast<size_t>(n)), want_top(size_t(n * top));
    std::vector<int32_t> want_ids(size_t(n * top));
    const auto gpu_logits = on_gpu(logits), out = on_gpu(std::vector<float>(size_t(n), NAN)),
               top_logprobs = on_gpu(std::vector<float>(size_t(n * top), NAN));
    const auto gpu_targets = on_gpu(targets), ids = on_gpu(std::vector<int32_t>(size_t(n * top), -7));
    LogprobsArgs a{.logits = logits.data(),
                   .n = n,
                   .vocab = vocab,
                   .targets = targets.data(),
                   .target_logprobs = want.data(),
                   .top = top,
                   .top_ids = want_ids.data(),
                   .top_logprobs = want_top.data()};
    cpu_.ops().logprobs(cpu_.context(), a);
    a.logits = gpu_logits.data();
    a.targets = gpu_targets.data();
    a.target_logprobs = out.data();
    a.top_ids = ids.data();
    a.top_logprobs = top_logprobs.data();
    ops().logprobs(context(), a);
    EXPECT_TRUE(near(out.get(), doubles(want), {2e-6, 1e-6})) << vocab;
    EXPECT_EQ(ids.get(), want_ids) << vocab;
    EXPECT_TRUE(near(top_logprobs.get(), doubles(want_top), {2e-6, 1e-6})) << vocab;
  }
}

}  // namespace
}  // namespace spinfer::test
