// The pruning ops of the GPU against the CPU's.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tests/kernels/cuda_ops.h"

namespace spinfer::test {
namespace {

/// Correlated inputs: each column is some of the one before.
std::vector<Half> inputs(int n, int64_t k, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<Half> x;
  for (int t = 0; t < n; ++t) {
    float value = 0;
    for (int64_t i = 0; i < k; ++i) {
      value = 0.8f * value + normal(random);
      x.push_back(to_half(i == k / 3 ? 0 : value));  // one dead input
    }
  }
  return x;
}

struct Sums {
  std::vector<double> squares;
  std::vector<float> gram;
};

class CudaPruning : public CudaOps {
 protected:
  Sums sums_on(Device& device, const std::vector<Half>& x, int n, int64_t k) {
    DeviceArray<Half> input(device, int64_t(x.size()), MemoryUse::workspace);
    input.upload(x.data(), int64_t(x.size()));
    DeviceArray<double> squares(device, k, MemoryUse::workspace);
    DeviceArray<float> gram(device, k * k, MemoryUse::workspace);
    device.ops().fill_zero(device.context(), squares.data(), size_t(k) * sizeof(double));
    device.ops().fill_zero(device.context(), gram.data(), size_t(k * k) * sizeof(float));
    for (const auto& [begin, end] : {std::pair{0, n / 3}, std::pair{n / 3, n}})
      device.ops().input_statistics(device.context(), {.x = input.data() + begin * k,
                                                       .n = end - begin,
                                                       .k = k,
                                                       .squares = squares.data(),
                                                       .gram = gram.data()});
    return {squares.download(k), gram.download(k * k)};
  }
  std::vector<float> factor_on(Device& device, const std::vector<float>& gram, int64_t k) {
    DeviceArray<float> matrix(device, k * k, MemoryUse::workspace);
    matrix.upload(gram.data(), k * k);
    EXPECT_TRUE(
        device.ops().inverse_factor(device.context(), {.gram = matrix.data(), .k = k, .dampening = 0.01}));
    return matrix.download(k * k);
  }
  std::vector<float> pruned_on(Device& device, std::vector<float> w, const std::vector<float>& factor,
                               int64_t m, int64_t k, double sparsity) {
    DeviceArray<float> weights(device, m * k, MemoryUse::workspace), u(device, k * k, MemoryUse::workspace);
    weights.upload(w.data(), m * k);
    u.upload(factor.data(), k * k);
    device.ops().sparsegpt(device.context(),
                           {.w = weights.data(), .factor = u.data(), .m = m, .k = k, .sparsity = sparsity});
    return weights.download(m * k);
  }
  Device cpu_device_{cpu_backend(), {.threads = 0}};
};

TEST_F(CudaPruning, StatisticsAreTheCpus) {
  for (const int64_t k : {1, 7, 33, 300}) {
    for (const int n : {1, 5, 700}) {
      const auto x = inputs(n, k, unsigned(k));
      const Sums expected = sums_on(cpu_device_, x, n, k), got = sums_on(gpu(), x, n, k);
      EXPECT_EQ(got.squares, expected.squares) << k << " " << n << ": both add in fp64, token after token";
      for (int64_t i = 0; i < k; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
          const double size = std::sqrt(expected.squares[size_t(i)] * expected.squares[size_t(j)]);
          ASSERT_NEAR(got.gram[size_t(i * k + j)], expected.gram[size_t(i * k + j)], 1e-5 * size + 1e-30);
        }
      }
    }
  }
}

TEST_F(CudaPruning, FactorIsTheCpus) {
  for (const int64_t k : {1, 2, 65, 400}) {
    const Sums sums = sums_on(cpu_device_, inputs(int(k) + 20, k, 5), int(k) + 20, k);
    const auto expected = factor_on(cpu_device_, sums.gram, k), got = factor_on(gpu(), sums.gram, k);
    double largest = 0;
    for (const float value : expected) largest = std::max(largest, std::abs(double(value)));
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], 1e-3 * largest) << k << " " << i;
  }
}

TEST_F(CudaPruning, WhatHasNoFactor) {
  for (const std::vector<float>& gram :
       {std::vector<float>{1, 0, 2, 1}, std::vector<float>{1, 0, 0, INFINITY}}) {
    DeviceArray<float> matrix(gpu(), 4, MemoryUse::workspace);
    matrix.upload(gram.data(), 4);
    EXPECT_FALSE(ops().inverse_factor(context(), {.gram = matrix.data(), .k = 2, .dampening = 0}));
  }
}

TEST_F(CudaPruning, SparseGptPrunesAndCorrectsAsTheCpuDoes) {
  const int64_t m = 75, k = 300;
  const int n = 500;
  const auto x = inputs(n, k, 9);
  const Sums sums = sums_on(cpu_device_, x, n, k);
  const auto factor = factor_on(cpu_device_, sums.gram, k);
  std::vector<float> w;
  std::mt19937 random(3);
  for (int64_t i = 0; i < m * k; ++i)
    w.push_back(i % k == k / 3 ? 0 : float(int(random() % 2001) - 1000) / 1000);
  const auto error = [&](const std::vector<float>& pruned) {
    double sum = 0;
    for (int t = 0; t < n; ++t) {
      for (int64_t row = 0; row < m; ++row) {
        double y = 0;
        for (int64_t i = 0; i < k; ++i)
          y += double(to_float(x[size_t(t * k + i)])) *
               double(w[size_t(row * k + i)] - pruned[size_t(row * k + i)]);
        sum += y * y;
      }
    }
    return sum;
  };
  for (const double sparsity : {0.0, 0.5, 0.7, 1.0}) {
    const auto expected = pruned_on(cpu_device_, w, factor, m, k, sparsity);
    const auto got = pruned_on(gpu(), w, factor, m, k, sparsity);
    EXPECT_NEAR(error(got), error(expected), 0.01 * error(expected)) << sparsity;
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 128}, {128, 256}, {256, 300}}) {
      int64_t zeros = 0, expected_zeros = 0;
      for (int64_t row = 0; row < m; ++row) {
        for (int64_t col = begin; col < end; ++col) {
          zeros += got[size_t(row * k + col)] == 0;
          expected_zeros += expected[size_t(row * k + col)] == 0;
        }
      }
      EXPECT_EQ(zeros, expected_zeros) << sparsity;
    }
  }
}

}  // namespace
}  // namespace spinfer::test
