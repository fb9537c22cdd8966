// Sampling: exact sets of kept tokens, ties, reproducibility, and frequencies against the exact distribution.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>

#include "kernels/check.h"
#include "tests/kernels/cpu_ops.h"

namespace spinfer::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

class CpuSample : public CpuOps {
 protected:
  int32_t sample(const std::vector<float>& logits, SampleRow row, const std::vector<int32_t>& seen = {},
                 const std::vector<TokenBias>& biases = {}) {
    row.seen_end = int32_t(seen.size());
    row.bias_end = int32_t(biases.size());
    int32_t id = -7;
    ops_.sample(context_, {.logits = logits.data(),
                           .n = 1,
                           .vocab = int(logits.size()),
                           .rows = &row,
                           .seen = seen.data(),
                           .ids = &id,
                           .biases = biases.data()});
    return id;
  }
  /// How often each token comes in `draws` steps of one seed.
  std::map<int32_t, int> frequencies(const std::vector<float>& logits, SampleRow row, int draws,
                                     const std::vector<int32_t>& seen = {}) {
    row.seen_end = int32_t(seen.size());
    std::vector<SampleRow> rows;
    std::vector<float> repeated;
    for (int i = 0; i < draws; ++i) {
      row.step = uint32_t(i);
      rows.push_back(row);
      repeated.insert(repeated.end(), logits.begin(), logits.end());
    }
    std::vector<int32_t> ids(size_t(draws), -7);
    ops_.sample(context_, {.logits = repeated.data(),
                           .n = draws,
                           .vocab = int(logits.size()),
                           .rows = rows.data(),
                           .seen = seen.data(),
                           .ids = ids.data()});
    std::map<int32_t, int> counts;
    for (const int32_t id : ids) ++counts[id];
    return counts;
  }
  std::set<int32_t> drawn(const std::vector<float>& logits, const SampleRow& row,
                          const std::vector<int32_t>& seen = {}) {
    std::set<int32_t> ids;
    for (const auto& [id, count] : frequencies(logits, row, 3000, seen)) ids.insert(id);
    return ids;
  }
};
SPINFER_ON_ALL_TARGETS(CpuSample);

std::vector<float> logits_of(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(float(std::log(p)) + 3);
  return logits;
}

/// The distribution the contract describes, in double, by sorting everything.
std::vector<double> reference(const std::vector<float>& logits, const SampleRow& row,
                              const std::vector<int32_t>& seen = {}) {
  std::vector<double> l(logits.begin(), logits.end());
  for (const int32_t id : seen) l[id] = l[id] > 0 ? l[id] / row.repeat_penalty : l[id] * row.repeat_penalty;
  std::vector<int32_t> ids(l.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int a, int b) { return l[a] > l[b]; });
  if (row.top_k > 0) ids.resize(std::min(ids.size(), size_t(row.top_k)));
  std::vector<double> w(l.size());
  double mass = 0, sum = 0;
  for (const int32_t id : ids) mass += w[id] = std::exp((l[id] - l[ids[0]]) / row.temperature);
  for (const int32_t id : ids) {
    if (row.top_p < 1 && sum >= row.top_p * mass) w[id] = 0;
    sum += w[id];
    if (w[id] < row.min_p) w[id] = 0;
  }
  const double total = std::accumulate(w.begin(), w.end(), 0.0);
  for (double& x : w) x /= total;
  return w;
}

TEST_P(CpuSample, GreedyTakesTheLargestAndTheLowestIdOfATie) {
  EXPECT_EQ(sample({1, 5, 3}, {}), 1);
  EXPECT_EQ(sample({-kInf, -5, -3}, {}), 2);
  EXPECT_EQ(sample({2, 5, 5, 5}, {}), 1);
  EXPECT_EQ(sample({7}, {}), 0);
  std::vector<float> many(1003, 1.0f);
  many[517] = many[900] = 2.0f;
  EXPECT_EQ(sample(many, {}), 517);
}

TEST_P(CpuSample, GreedyAppliesThePenalty) {
  const std::vector<float> logits = {4, 5, -1};
  EXPECT_EQ(sample(logits, {.repeat_penalty = 2}, {1}), 0);           // 5 → 2.5
  EXPECT_EQ(sample(logits, {.repeat_penalty = 1.1f}, {1}), 1);        // 5 → 4.5
  EXPECT_EQ(sample({-4, -5, -6}, {.repeat_penalty = 2}, {0}), 1);     // −4 → −8
  EXPECT_EQ(sample({-4, -5, -6}, {.repeat_penalty = 0.5f}, {2}), 2);  // −6 → −3: below 1 it is a reward
}

TEST_P(CpuSample, BiasesAreAddedBeforeThePenalty) {
  const std::vector<float> logits = {1, 5, 3};
  EXPECT_EQ(sample(logits, {}, {}, {{0, 4.5f}}), 0);
  EXPECT_EQ(sample(logits, {}, {}, {{0, 1}, {1, -3}}), 2);
  EXPECT_EQ(sample({-1, 2}, {.repeat_penalty = 2}, {0}, {{0, 4}}), 1);  // (−1 + 4) / 2, not −2 + 4
  Random random(4);
  std::vector<float> many(500), moved;
  for (float& l : many) l = random.gaussian(2);
  moved = many;
  const std::vector<TokenBias> biases = {{3, 2.5f}, {77, -100}, {499, 100}};
  for (const auto [id, bias] : biases) moved[size_t(id)] += bias;
  moved[499] = many[499] = -50;
  for (uint32_t step = 0; step < 200; ++step) {
    const SampleRow row{.temperature = 1, .top_k = int32_t(step % 3) * 40, .step = step, .seed = 8};
    EXPECT_EQ(sample(many, row, {}, {biases[0], biases[1]}), sample(moved, row)) << step;
    EXPECT_EQ(sample(many, row, {}, biases), 499) << step;
  }
}

TEST_P(CpuSample, TopKKeepsExactlyKAndTheLowestIdsOfATie) {
  const std::vector<float> logits = {1, 2, 1.5f, 2, 2, 0};
  EXPECT_EQ(drawn(logits, {.temperature = 1, .top_k = 1}), (std::set<int32_t>{1}));
  EXPECT_EQ(drawn(logits, {.temperature = 1, .top_k = 2}), (std::set<int32_t>{1, 3}));
  EXPECT_EQ(drawn(logits, {.temperature = 1, .top_k = 4}), (std::set<int32_t>{1, 2, 3, 4}));
  EXPECT_EQ(drawn(logits, {.temperature = 1, .top_k = 0}).size(), 6u);
  EXPECT_EQ(drawn(logits, {.temperature = 1, .top_k = 100}).size(), 6u);
}

TEST_P(CpuSample, TopPKeepsTheShortestPrefix) {
  const auto logits = logits_of({0.1, 0.4, 0.05, 0.3, 0.15});
  EXPECT_EQ(drawn(logits, {.temperature = 1, .top_p = 1e-6f}), (std::set<int32_t>{1}));
  EXPECT_EQ(drawn(logits, {.temperature = 1, .top_p = 0.39f}), (std::set<int32_t>{1}));
  EXPECT_EQ(drawn(logits, {.temperature = 1, .top_p = 0.41f}), (std::set<int32_t>{1, 3}));
  EXPECT_EQ(drawn(logits, {.temperature = 1, .top_p = 0.84f}), (std::set<int32_t>{1, 3, 4}));
  EXPECT_EQ(drawn(logits, {.temperature = 1, .top_p = 0.86f}), (std::set<int32_t>{0, 1, 3, 4}));
  EXPECT_EQ(drawn(logits, {.temperature = 1, .top_p = 1}).size(), 5u);
  // Equal probabilities: 1, exactly half of the mass, is reached with two of four; the lower ids stay.
  EXPECT_EQ(drawn({1, 1, 1, 1}, {.temperature = 1, .top_p = 0.5f}), (std::set<int32_t>{0, 1}));
}

TEST_P(CpuSample, TopPCountsTheMassThatTopKKept) {
  const auto logits = logits_of({0.1, 0.4, 0.05, 0.3, 0.15});
  // Of top-3 (0.4, 0.3, 0.15) the first two are 0.7/0.85 = 0.824 of the mass.
  EXPECT_EQ(drawn(logits, {.temperature = 1, .top_k = 3, .top_p = 0.82f}), (std::set<int32_t>{1, 3}));
  EXPECT_EQ(drawn(logits, {.temperature = 1, .top_k = 3, .top_p = 0.83f}), (std::set<int32_t>{1, 3, 4}));
}

TEST_P(CpuSample, MinPIsRelativeToTheLargest) {
  const auto logits = logits_of({0.1, 0.4, 0.05, 0.3, 0.15});
  EXPECT_EQ(drawn(logits, {.temperature = 1, .min_p = 0.2f}), (std::set<int32_t>{0, 1, 3, 4}));
  EXPECT_EQ(drawn(logits, {.temperature = 1, .min_p = 0.5f}), (std::set<int32_t>{1, 3}));
  EXPECT_EQ(drawn(logits, {.temperature = 1, .min_p = 1}), (std::set<int32_t>{1}));
  EXPECT_EQ(drawn(logits, {.temperature = 1, .top_k = 4, .top_p = 0.9f, .min_p = 0.3f}),
            (std::set<int32_t>{1, 3, 4}));
}

TEST_P(CpuSample, PenaltyMovesTokensOutOfTheSet) {
  EXPECT_EQ(drawn({3, 2, 1, 0.5f}, {.temperature = 1, .top_k = 2, .repeat_penalty = 4}, {0, 3}),
            (std::set<int32_t>{1, 2}));
}

TEST_P(CpuSample, ImpossibleTokensAreNeverDrawn) {
  EXPECT_EQ(drawn({-kInf, 0, -kInf, 0, -1e30f}, {.temperature = 1}), (std::set<int32_t>{1, 3}));
}

// u = 0: the running sum must exceed it, so a leading token of weight zero is passed over.
TEST_P(CpuSample, ImpossibleTokensAreNotDrawnByTheSmallestU) {
  const uint64_t seed = 0 - 0x9e3779b97f4a7c15ull;
  ASSERT_EQ(sample_uniform(seed, 0), 0.0f);
  EXPECT_EQ(sample({-kInf, -kInf, 0, 0}, {.temperature = 1, .seed = seed}), 2);
}

TEST_P(CpuSample, ExtremeTemperatures) {
  const std::vector<float> logits = {1, 1.001f, 0.5f};
  EXPECT_EQ(drawn(logits, {.temperature = 1e-30f}), (std::set<int32_t>{1}));
  EXPECT_EQ(drawn(logits, {.temperature = 1e30f}), (std::set<int32_t>{0, 1, 2}));
}

TEST_P(CpuSample, FrequenciesMatchTheDistribution) {
  Random random(1);
  std::vector<float> logits(40);
  for (float& l : logits) l = random.gaussian(2);
  std::vector<int32_t> seen = {3, 7, 21};
  const SampleRow rows[] = {
      {.temperature = 1, .seed = 5},
      {.temperature = 0.7f, .top_k = 12, .seed = 6},
      {.temperature = 1.5f, .top_p = 0.8f, .seed = 7},
      {.temperature = 1.2f, .min_p = 0.1f, .seed = 8},
      {.temperature = 0.9f, .top_k = 20, .top_p = 0.9f, .min_p = 0.02f, .repeat_penalty = 1.3f, .seed = 9}};
  constexpr int kDraws = 40000;
  for (const SampleRow& row : rows) {
    const auto& used = row.repeat_penalty == 1 ? std::vector<int32_t>{} : seen;
    const auto want = reference(logits, row, used);
    auto counts = frequencies(logits, row, kDraws, used);
    double chi_square = 0;
    int cells = 0;
    double rare_want = 0, rare_got = 0;  // cells of fewer than 10 expected draws are taken together
    for (size_t id = 0; id < want.size(); ++id) {
      const double expected = want[id] * kDraws, got = counts[int32_t(id)];
      if (expected == 0) {
        EXPECT_EQ(got, 0) << id;
      } else if (expected < 10) {
        rare_want += expected;
        rare_got += got;
      } else {
        chi_square += (got - expected) * (got - expected) / expected;
        ++cells;
      }
    }
    if (rare_want > 0) chi_square += (rare_got - rare_want) * (rare_got - rare_want) / rare_want;
    // χ² with f degrees of freedom has mean f and variance 2f: five standard deviations.
    EXPECT_LT(chi_square, cells + 5 * std::sqrt(2.0 * cells) + 5) << "seed " << row.seed;
    EXPECT_GT(chi_square, 0.01 * cells) << "suspiciously exact";
  }
}

/// The exact token for (seed, step): the contract's walk over ids, in double.
TEST_P(CpuSample, DrawsTheTokenTheContractNames) {
  Random random(2);
  std::vector<float> logits(1000);
  for (float& l : logits) l = random.gaussian(3);
  int compared = 0;
  for (uint32_t step = 0; step < 500; ++step) {
    const SampleRow row{.temperature = 0.9f,
                        .top_k = int32_t(step % 3) * 50,
                        .top_p = step % 2 ? 0.95f : 1.0f,
                        .step = step,
                        .seed = 1000 + step};
    const auto p = reference(logits, row);
    const double u = sample_uniform(row.seed, row.step);
    double sum = 0, distance = 1;
    int32_t want = -1;
    for (size_t id = 0; id < p.size(); ++id) {
      sum += p[id];
      if (want < 0 && sum > u) want = int32_t(id);
      distance = std::min(distance, std::abs(sum - u));
    }
    if (distance < 1e-5) continue;  // fp32 weights may fall on either side
    ++compared;
    EXPECT_EQ(sample(logits, row), want) << "step " << step;
  }
  EXPECT_GT(compared, 400);
}

TEST_P(CpuSample, DependsOnSeedAndStepNotOnTheBatch) {
  Random random(3);
  constexpr int kRows = 17, kVocab = 517;
  std::vector<float> logits(kRows * kVocab);
  for (float& l : logits) l = random.gaussian(1);
  std::vector<int32_t> seen;
  std::vector<SampleRow> rows(kRows);
  for (int i = 0; i < kRows; ++i) {
    rows[i] = {.temperature = i % 4 == 0 ? 0.0f : 0.8f,
               .top_k = i % 3 * 20,
               .top_p = i % 2 ? 0.9f : 1.0f,
               .repeat_penalty = i % 5 ? 1.0f : 1.2f,
               .seen_begin = int32_t(seen.size()),
               .step = uint32_t(i),
               .seed = 42};
    for (int j = 0; j < i; ++j) seen.push_back(j * 30);
    rows[i].seen_end = int32_t(seen.size());
  }
  const auto run = [&](Device& device, int first, int n) {
    std::vector<int32_t> ids(size_t(n), -7);
    device.ops().sample(device.context(), {.logits = &logits[size_t(first) * kVocab],
                                           .n = n,
                                           .vocab = kVocab,
                                           .rows = &rows[first],
                                           .seen = seen.data(),
                                           .ids = ids.data()});
    return ids;
  };
  const auto before = logits;
  const auto batch = run(device_, 0, kRows);
  EXPECT_EQ(logits, before);
  for (int i = 0; i < kRows; ++i) EXPECT_EQ(run(device_, i, 1)[0], batch[i]) << i;
  CpuDevice one(1), five(5);
  EXPECT_EQ(run(one, 0, kRows), batch);
  EXPECT_EQ(run(five, 0, kRows), batch);

  for (auto& row : rows) row.seed = 43;
  EXPECT_NE(run(device_, 0, kRows), batch);
}

TEST_P(CpuSample, UnusableLogitsGiveNoTokenAndHarmNoOtherRow) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float bad : {nan, kInf}) {
    for (const int position : {0, 5, 36}) {
      for (const float temperature : {0.0f, 1.0f}) {
        std::vector<float> logits(3 * 37, 1.0f);
        logits[37 + position] = bad;
        const std::vector<SampleRow> rows(3, SampleRow{.temperature = temperature});
        std::vector<int32_t> ids(3, -7);
        ops_.sample(context_, {.logits = logits.data(),
                               .n = 3,
                               .vocab = 37,
                               .rows = rows.data(),
                               .seen = nullptr,
                               .ids = ids.data()});
        EXPECT_EQ(ids[1], kNoToken) << bad << " at " << position;
        EXPECT_TRUE(ids[0] >= 0 && ids[0] < 37) << ids[0];
        EXPECT_EQ(ids[2], ids[0]);
      }
    }
  }
  EXPECT_EQ(sample({-kInf, -kInf}, {}), kNoToken);
  EXPECT_THROW(sample({1, 2}, {.repeat_penalty = 2}, {2}), Error);
  EXPECT_THROW(sample({1, 2}, {}, {}, {{2, 1}}), Error);
}

}  // namespace
}  // namespace spinfer::test
