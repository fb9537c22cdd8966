// Log-probabilities against a double log-softmax.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/check.h"
#include "tests/kernels/cpu_ops.h"

namespace spinfer::test {
namespace {

using CpuLogprobs = CpuOps;
SPINFER_ON_ALL_TARGETS(CpuLogprobs);

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<double> log_softmax(const float* logits, int vocab) {
  const double max = *std::max_element(logits, logits + vocab);
  double sum = 0;
  for (int i = 0; i < vocab; ++i) sum += std::exp(double(logits[i]) - max);
  std::vector<double> result;
  for (int i = 0; i < vocab; ++i) result.push_back(double(logits[i]) - max - std::log(sum));
  return result;
}

TEST_P(CpuLogprobs, MatchTheReference) {
  Random random(1);
  for (const int n : {0, 1, 3, 17}) {
    for (const int vocab : {1, 7, 130, 1025, 128256}) {
      if (n * vocab > 400000) continue;
      const int top = std::min(vocab, 20);
      std::vector<float> logits(size_t(n) * vocab);
      for (float& l : logits) l = random.gaussian(4) - 30;
      std::vector<int32_t> targets(n);
      for (int i = 0; i < n; ++i) targets[i] = i % 3 == 1 ? -1 : random.below(vocab);
      std::vector<float> target_logprobs(n, kNan), top_logprobs(size_t(n) * top, kNan);
      std::vector<int32_t> top_ids(size_t(n) * top, -7);
      ops_.logprobs(context_, {.logits = logits.data(),
                               .n = n,
                               .vocab = vocab,
                               .targets = targets.data(),
                               .target_logprobs = target_logprobs.data(),
                               .top = top,
                               .top_ids = top_ids.data(),
                               .top_logprobs = top_logprobs.data()});
      std::vector<double> want, top_want;
      std::vector<int32_t> ids_want;
      for (int i = 0; i < n; ++i) {
        const auto all = log_softmax(&logits[size_t(i) * vocab], vocab);
        want.push_back(targets[i] < 0 ? 0 : all[targets[i]]);
        std::vector<int32_t> ids(vocab);
        std::iota(ids.begin(), ids.end(), 0);
        std::stable_sort(ids.begin(), ids.end(), [&](int a, int b) { return all[a] > all[b]; });
        for (int j = 0; j < top; ++j) {
          ids_want.push_back(ids[j]);
          top_want.push_back(all[ids[j]]);
        }
      }
      // fp32 terms of 1 ulp and sums of 64 per lane: a few 1e-6 relative in the sum, as much absolute in its
      // logarithm.
      EXPECT_TRUE(near(target_logprobs, want, {4e-6, 1e-6})) << "vocab " << vocab;
      EXPECT_TRUE(near(top_logprobs, top_want, {4e-6, 1e-6})) << "vocab " << vocab;
      EXPECT_EQ(top_ids, ids_want);
    }
  }
}

TEST_P(CpuLogprobs, TiesListTheLowerIdFirst) {
  const std::vector<float> logits = {1, 3, 2, 3, 3, 2};
  std::vector<int32_t> ids(5, -7);
  std::vector<float> values(5, kNan);
  ops_.logprobs(context_, {.logits = logits.data(),
                           .n = 1,
                           .vocab = 6,
                           .targets = nullptr,
                           .target_logprobs = nullptr,
                           .top = 5,
                           .top_ids = ids.data(),
                           .top_logprobs = values.data()});
  EXPECT_EQ(ids, (std::vector<int32_t>{1, 3, 4, 2, 5}));
}

TEST_P(CpuLogprobs, AnImpossibleTokenHasMinusInfinity) {
  const std::vector<float> logits = {0, -std::numeric_limits<float>::infinity()};
  const int32_t target = 1;
  float value = kNan;
  ops_.logprobs(context_, {.logits = logits.data(),
                           .n = 1,
                           .vocab = 2,
                           .targets = &target,
                           .target_logprobs = &value,
                           .top_ids = nullptr,
                           .top_logprobs = nullptr});
  EXPECT_EQ(value, -std::numeric_limits<float>::infinity());
}

TEST_P(CpuLogprobs, RefusesUnusableInput) {
  std::vector<float> logits = {0, 1};
  float value;
  int32_t target = 2, ids[3];
  LogprobsArgs args{.logits = logits.data(),
                    .n = 1,
                    .vocab = 2,
                    .targets = &target,
                    .target_logprobs = &value,
                    .top_ids = ids,
                    .top_logprobs = nullptr};
  EXPECT_THROW(ops_.logprobs(context_, args), Error);
  target = 1;
  args.top = 3;
  EXPECT_THROW(ops_.logprobs(context_, args), Error);
  args.top = 0;
  EXPECT_NO_THROW(ops_.logprobs(context_, args));
}

TEST_P(CpuLogprobs, ARowWithNanHasNoProbabilities) {
  const std::vector<float> logits = {0, kNan, 1, 0, 1, 2};
  const std::vector<int32_t> targets = {0, 2};
  std::vector<float> values(2, 7), tops(4, 7);
  std::vector<int32_t> ids(4, -7);
  ops_.logprobs(context_, {.logits = logits.data(),
                           .n = 2,
                           .vocab = 3,
                           .targets = targets.data(),
                           .target_logprobs = values.data(),
                           .top = 2,
                           .top_ids = ids.data(),
                           .top_logprobs = tops.data()});
  EXPECT_TRUE(std::isnan(values[0]) && std::isnan(tops[0]) && std::isnan(tops[1]));
  EXPECT_NEAR(values[1], -0.407606, 1e-5);
  EXPECT_EQ(ids, (std::vector<int32_t>{0, 1, 2, 1}));
}

}  // namespace
}  // namespace spinfer::test
