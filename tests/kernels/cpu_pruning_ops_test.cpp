// input_statistics, inverse_factor and sparsegpt of the CPU against plain double arithmetic.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/device.h"

namespace spinfer::test {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<Half> random_inputs(int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<Half> x(static_cast<size_t>(count));
  for (Half& h : x) h = to_half(normal(random));
  return x;
}

struct Statistics {
  std::vector<double> squares;
  std::vector<float> gram;  ///< upper triangle NaN: nothing may be written or read there
};

Statistics start(int64_t k) {
  Statistics s{std::vector<double>(size_t(k)), std::vector<float>(size_t(k * k), kNan)};
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = 0; j <= i; ++j) s.gram[size_t(i * k + j)] = 0;
  return s;
}

void add(Device& device, Statistics& s, const Half* x, int n, int64_t k) {
  device.ops().input_statistics(device.context(),
                                {.x = x, .n = n, .k = k, .squares = s.squares.data(), .gram = s.gram.data()});
}

TEST(CpuInputStatistics, SumsOfEveryShape) {
  Device device(cpu_backend(), {.threads = 3});
  for (const int64_t k : {1, 5, 31, 32, 33, 64, 100, 161}) {
    for (const int n : {0, 1, 3, 255, 256, 257, 600}) {
      const auto x = random_inputs(n * k, unsigned(k * 1000 + n));
      Statistics s = start(k);
      add(device, s, x.data(), n, k);
      for (int64_t i = 0; i < k; ++i) {
        for (int64_t j = 0; j < k; ++j) {
          const float got = s.gram[size_t(i * k + j)];
          if (j > i) {
            ASSERT_TRUE(std::isnan(got)) << i << " " << j;
            continue;
          }
          double sum = 0, size = 0;
          for (int t = 0; t < n; ++t) {
            const double p = double(to_float(x[size_t(t * k + i)])) * double(to_float(x[size_t(t * k + j)]));
            sum += p;
            size += std::abs(p);
          }
          ASSERT_LE(std::abs(double(got) - sum), 1e-5 * size)
              << "k " << k << " n " << n << ": " << i << " " << j;
          if (i == j) {
            ASSERT_EQ(s.squares[size_t(i)], sum) << "token after token in fp64: exactly this";
          }
        }
      }
    }
  }
}

TEST(CpuInputStatistics, SquaresDoNotDependOnTheBatches) {
  const int64_t k = 70;
  const auto x = random_inputs(500 * k, 4);
  Device one(cpu_backend(), {.threads = 1}), three(cpu_backend(), {.threads = 3});
  Statistics whole = start(k), parts = start(k);
  add(one, whole, x.data(), 500, k);
  for (const int begin : {0, 7, 300})
    add(three, parts, x.data() + begin * k, (begin == 0 ? 7 : begin == 7 ? 300 : 500) - begin, k);
  EXPECT_EQ(whole.squares, parts.squares);
}

TEST(CpuInputStatistics, WithoutGram) {
  const auto x = random_inputs(40, 1);
  Device device(cpu_backend(), {.threads = 1});
  std::vector<double> squares(4, 1.0);
  device.ops().input_statistics(device.context(),
                                {.x = x.data(), .n = 10, .k = 4, .squares = squares.data(), .gram = nullptr});
  for (const double s : squares) EXPECT_GT(s, 1.0);
}

TEST(CpuInverseFactor, IsTheFactorOfTheDampedInverse) {
  for (const int threads : {1, 3}) {
    Device device(cpu_backend(), {.threads = threads});
    for (const int64_t k : {1, 2, 63, 64, 65, 150}) {
      Statistics s = start(k);
      const int n = int(k / 2 + 1);  // fewer tokens than inputs: only the dampening makes H regular
      auto x = random_inputs(n * k, unsigned(k));
      const int64_t dead = k / 3;
      if (k > 2) {
        for (int t = 0; t < n; ++t) x[size_t(t * k + dead)] = Half{};
      }
      add(device, s, x.data(), n, k);
      std::vector<double> h(size_t(k * k));
      double mean = 0;
      for (int64_t i = 0; i < k; ++i) mean += double(s.gram[size_t(i * k + i)]) / double(k > 2 ? k - 1 : k);
      for (int64_t i = 0; i < k; ++i) {
        for (int64_t j = 0; j < k; ++j)
          h[size_t(i * k + j)] = double(s.gram[size_t(std::max(i, j) * k + std::min(i, j))]);
        h[size_t(i * k + i)] += 0.01 * mean + (k > 2 && i == dead ? mean : 0);
      }
      ASSERT_TRUE(
          device.ops().inverse_factor(device.context(), {.gram = s.gram.data(), .k = k, .dampening = 0.01}));
      for (int64_t i = 0; i < k; ++i) {  // U·H·Uᵀ = I
        for (int64_t j = 0; j < k; ++j) {
          const float u = s.gram[size_t(i * k + j)];
          if (j < i) {
            ASSERT_EQ(u, 0.0f);
          }
          double sum = 0;
          for (int64_t a = i; a < k; ++a)
            for (int64_t b = j; b < k; ++b)
              sum += double(s.gram[size_t(i * k + a)]) * h[size_t(a * k + b)] *
                     double(s.gram[size_t(j * k + b)]);
          ASSERT_NEAR(sum, i == j, 1e-4) << "k " << k << ": " << i << " " << j;
        }
      }
    }
  }
}

TEST(CpuInverseFactor, SaysWhatHasNone) {
  Device device(cpu_backend(), {.threads = 1});
  std::vector<float> indefinite = {1, 0, 2, 1}, not_a_number = {1, 0, kNan, 1},
                     infinite = {1, 0, 0, INFINITY};
  for (auto* gram : {&indefinite, &not_a_number, &infinite})
    EXPECT_FALSE(
        device.ops().inverse_factor(device.context(), {.gram = gram->data(), .k = 2, .dampening = 0}));
}

struct Problem {
  int64_t m, k;
  std::vector<float> w, factor;
};

Problem problem(Device& device, int64_t m, int64_t k) {
  Problem p{m, k, {}, {}};
  Statistics s = start(k);
  const auto x = random_inputs(2 * k * k, 11);
  add(device, s, x.data(), int(2 * k), k);
  EXPECT_TRUE(
      device.ops().inverse_factor(device.context(), {.gram = s.gram.data(), .k = k, .dampening = 0.01}));
  p.factor = s.gram;
  for (const Half h : random_inputs(m * k, 12)) p.w.push_back(to_float(h));
  return p;
}

TEST(CpuSparseGpt, ExactCountsInEveryBlock) {
  Device device(cpu_backend(), {.threads = 2});
  for (const double sparsity : {0.0, 0.1, 0.37, 0.5, 0.9, 1.0}) {
    Problem p = problem(device, 33, 300);
    const auto before = p.w;
    device.ops().sparsegpt(
        device.context(),
        {.w = p.w.data(), .factor = p.factor.data(), .m = p.m, .k = p.k, .sparsity = sparsity});
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 128}, {128, 256}, {256, 300}}) {
      int64_t zeros = 0;
      for (int64_t row = 0; row < p.m; ++row)
        for (int64_t col = begin; col < end; ++col) zeros += p.w[size_t(row * p.k + col)] == 0;
      EXPECT_EQ(zeros, std::llround(sparsity * double(p.m * (end - begin))));
    }
    if (sparsity == 0) {
      EXPECT_EQ(p.w, before);
    }
  }
}

TEST(CpuSparseGpt, EqualScoresGoInOrder) {
  Device device(cpu_backend(), {.threads = 1});
  std::vector<float> w(12, 0.5f), factor(9);
  for (int i = 0; i < 3; ++i) factor[size_t(i * 4)] = 1;  // uncorrelated inputs: nothing to correct
  device.ops().sparsegpt(device.context(),
                         {.w = w.data(), .factor = factor.data(), .m = 4, .k = 3, .sparsity = 0.5});
  EXPECT_EQ(w, (std::vector<float>{0, 0, 0, 0, 0, 0, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f}));
}

TEST(CpuSparseGpt, DoesNotDependOnTheThreads) {
  Device one(cpu_backend(), {.threads = 1}), three(cpu_backend(), {.threads = 3});
  Problem p = problem(one, 70, 200), q = problem(three, 70, 200);
  EXPECT_EQ(p.factor, q.factor);
  one.ops().sparsegpt(one.context(),
                      {.w = p.w.data(), .factor = p.factor.data(), .m = 70, .k = 200, .sparsity = 0.6});
  three.ops().sparsegpt(three.context(),
                        {.w = q.w.data(), .factor = q.factor.data(), .m = 70, .k = 200, .sparsity = 0.6});
  EXPECT_EQ(p.w, q.w);
}

}  // namespace
}  // namespace spinfer::test
