#include "kernels/cpu/linear.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/activation.h"
#include "kernels/format/tca_bme_arrays.h"
#include "tests/kernels/random_matrix.h"

namespace spinfer {
namespace {

using cpu::SimdLevel;
using test::make_matrix;
using test::random_matrix;

constexpr Half kNan{0x7e01};

std::vector<SimdLevel> levels() {
  std::vector<SimdLevel> all;
  for (SimdLevel level : {SimdLevel::portable, SimdLevel::avx2, SimdLevel::avx512}) {
    if (level <= cpu::best_simd_level()) all.push_back(level);
  }
  return all;
}
const char* name_of(SimdLevel level) {
  return cpu::linear_kernels(level).name;
}

std::vector<Half> random_halves(int64_t count, uint64_t seed) {
  const DenseMatrix row = random_matrix(1, count, 1.0, seed);
  return {row.data, row.data + count};
}

/// W·x + b accumulated in double, and the sum of the magnitudes, from which the tolerance follows.
struct Reference {
  double value;
  double magnitude;
};
Reference reference(const DenseMatrix& w, const Half* bias, const Half* x, int64_t row) {
  Reference r{bias ? double(to_float(bias[row])) : 0.0, bias ? std::abs(double(to_float(bias[row]))) : 0.0};
  for (int64_t k = 0; k < w.k; ++k) {
    const double product = double(to_float(w.data[row * w.k + k])) * double(to_float(x[k]));
    r.value += product;
    r.magnitude += std::abs(product);
  }
  return r;
}
/// A chain of k/16 roundings, four of the tree, one of the bias; each at most 2^-24 of the magnitude (twice
/// without FMA).
double tolerance(const Reference& r, int64_t k) {
  return r.magnitude * double(2 * (k / 16 + 6)) * 0x1p-24;
}

std::vector<float> run_logits(DeviceContext& context, const Linear& w, const std::vector<Half>& x, int n,
                              SimdLevel level) {
  std::vector<float> out(size_t(n * w.m), std::numeric_limits<float>::quiet_NaN());
  cpu::logits(context, {w, x.data(), n, out.data()}, level);
  return out;
}
std::vector<uint32_t> bits_of(const std::vector<float>& values) {
  std::vector<uint32_t> bits(values.size());
  std::memcpy(bits.data(), values.data(), values.size() * sizeof(float));
  return bits;
}

class CpuLinear : public testing::TestWithParam<SimdLevel> {
 protected:
  DeviceContext context{DeviceOptions{.threads = 2}};
};
INSTANTIATE_TEST_SUITE_P(Levels, CpuLinear, testing::ValuesIn(levels()),
                         [](const auto& info) { return std::string(name_of(info.param)); });

TEST_P(CpuLinear, MatchesADoubleReferenceAtEverySizeAndDensity) {
  std::mt19937_64 rng(11);
  std::uniform_int_distribution<int64_t> size(1, 200);
  const int tokens[] = {1, 2, 3, 4, 5, 9};
  const double densities[] = {0, 0.05, 0.3, 0.5, 0.7, 0.95, 1};
  for (int round = 0; round < 28; ++round) {
    const int64_t m = size(rng), k = size(rng);
    const int n = tokens[round % 6];
    SCOPED_TRACE(fmt::format("{}x{} n {} density {}", m, k, n, densities[round % 7]));
    const DenseMatrix dense = random_matrix(m, k, densities[round % 7], uint64_t(round));
    const TcaBmeMatrix packed = encode(dense, context.pool);
    const std::vector<Half> bias = random_halves(m, 100 + uint64_t(round)), x = random_halves(n * k, 7);
    const Half* b = round % 2 ? bias.data() : nullptr;
    for (const HostMatrix& matrix : {HostMatrix(dense), HostMatrix(packed)}) {
      const LinearWeight weight = cpu::prepare_linear(context, matrix, b);
      const std::vector<float> y = run_logits(context, weight.view, x, n, GetParam());
      for (int t = 0; t < n; ++t) {
        for (int64_t row = 0; row < m; ++row) {
          const Reference r = reference(dense, b, x.data() + t * k, row);
          ASSERT_LE(std::abs(double(y[size_t(t * m + row)]) - r.value), tolerance(r, k))
              << row << " token " << t;
        }
      }
    }
  }
}

TEST_P(CpuLinear, PackedAndDenseGiveTheSameBits) {
  for (auto [m, k] : {std::pair<int64_t, int64_t>{100, 700}, {64, 64}, {129, 1030}, {1, 1}}) {
    for (int n : {1, 2, 3, 4, 70}) {
      const DenseMatrix dense = random_matrix(m, k, 0.5, 3);
      const std::vector<Half> x = random_halves(n * k, 5);
      const LinearWeight a = cpu::prepare_linear(context, dense, nullptr);
      const LinearWeight b = cpu::prepare_linear(context, encode(dense, context.pool), nullptr);
      EXPECT_EQ(bits_of(run_logits(context, a.view, x, n, GetParam())),
                bits_of(run_logits(context, b.view, x, n, GetParam())))
          << m << "x" << k << " n " << n;
    }
  }
}

TEST_P(CpuLinear, TheBatchAndTheThreadsDoNotChangeATokensBits) {
  const int64_t m = 70, k = 600;
  const int n = 70;  // two panels of tokens
  const DenseMatrix dense = random_matrix(m, k, 0.5, 21);
  const std::vector<Half> x = random_halves(n * k, 22);
  const TcaBmeMatrix packed = encode(dense, context.pool);
  for (const HostMatrix& matrix : {HostMatrix(dense), HostMatrix(packed)}) {
    const LinearWeight weight = cpu::prepare_linear(context, matrix, nullptr);
    const std::vector<uint32_t> all = bits_of(run_logits(context, weight.view, x, n, GetParam()));
    for (int count : {1, 2, 3, 4, 6, 11}) {
      for (int threads : {1, 3}) {
        DeviceContext other{DeviceOptions{.threads = threads}};
        const int first = 37;
        const std::vector<Half> part(x.begin() + first * k, x.begin() + (first + count) * k);
        const std::vector<uint32_t> bits = bits_of(run_logits(other, weight.view, part, count, GetParam()));
        EXPECT_TRUE(std::equal(bits.begin(), bits.end(), all.begin() + first * m)) << count << " tokens";
      }
    }
  }
}

TEST(CpuLinearLevels, Avx2AndAvx512GiveTheSameBits) {
  if (cpu::best_simd_level() < SimdLevel::avx512) GTEST_SKIP() << "this CPU has no AVX-512 VBMI2";
  DeviceContext context{DeviceOptions{.threads = 2}};
  for (int n : {1, 5}) {
    const DenseMatrix dense = random_matrix(200, 999, 0.5, 31);
    const std::vector<Half> x = random_halves(n * 999, 32);
    const LinearWeight weight = cpu::prepare_linear(context, encode(dense, context.pool), nullptr);
    EXPECT_EQ(bits_of(run_logits(context, weight.view, x, n, SimdLevel::avx2)),
              bits_of(run_logits(context, weight.view, x, n, SimdLevel::avx512)));
  }
}

TEST_P(CpuLinear, EpilogueAddsBiasActivatesThenAddsTheResidual) {
  const int64_t m = 70, k = 90;
  const int n = 3;
  const DenseMatrix dense = random_matrix(m, k, 0.4, 41);
  const std::vector<Half> bias = random_halves(m, 42), x = random_halves(n * k, 43),
                          residual = random_halves(n * m, 44);
  const LinearWeight weight = cpu::prepare_linear(context, encode(dense, context.pool), bias.data());
  const std::vector<float> plain = run_logits(context, weight.view, x, n, GetParam());
  for (Activation act :
       {Activation::none, Activation::relu, Activation::gelu, Activation::gelu_tanh, Activation::silu}) {
    for (bool add : {false, true}) {
      for (bool in_place : {false, true}) {
        std::vector<Half> y(size_t(n * m), kNan);
        if (in_place) y = residual;
        const Half* r = !add ? nullptr : in_place ? y.data() : residual.data();
        cpu::linear(context, {weight.view, x.data(), n, act, r, y.data()}, GetParam());
        for (size_t i = 0; i < y.size(); ++i) {
          const float expected = cpu::activate(act, plain[i]) + (add ? to_float(residual[i]) : 0.0f);
          ASSERT_EQ(y[i], to_half(expected)) << i;
        }
      }
    }
  }
}

TEST_P(CpuLinear, NanAndInfinityReachTheirRowsOnly) {
  DenseMatrix dense = random_matrix(80, 130, 0.5, 51);
  std::vector<Half> data(dense.data, dense.data + 80 * 130);
  data[5 * 130 + 77] = Half{0x7e00};
  data[6 * 130 + 129] = Half{0x7c00};
  data[7 * 130 + 0] = Half{0x0001};  // subnormal
  dense = make_matrix(80, 130, data);
  std::vector<Half> x(130, to_half(1.0f));
  for (const HostMatrix& matrix : {HostMatrix(dense), HostMatrix(encode(dense, context.pool))}) {
    const LinearWeight weight = cpu::prepare_linear(context, matrix, nullptr);
    const std::vector<float> y = run_logits(context, weight.view, x, 1, GetParam());
    for (size_t row = 0; row < y.size(); ++row) {
      if (row == 5) {
        EXPECT_TRUE(std::isnan(y[row]));
      } else if (row == 6) {
        EXPECT_TRUE(std::isinf(y[row]));
      } else {
        EXPECT_TRUE(std::isfinite(y[row])) << row;
      }
    }
  }
}

TEST_P(CpuLinear, SubnormalWeightsCount) {
  std::vector<Half> data(32, Half{0x0001});
  const LinearWeight weight =
      cpu::prepare_linear(context, encode(make_matrix(1, 32, data), context.pool), nullptr);
  const std::vector<Half> x(32, to_half(1.0f));
  EXPECT_EQ(run_logits(context, weight.view, x, 1, GetParam())[0], 32 * 0x1p-24f);
}

TEST_P(CpuLinear, NothingBehindTheArraysIsRead) {
  // Arrays of exactly their size, so that AddressSanitizer sees a read past them.
  for (double density : {0.02, 0.5, 1.0}) {
    const DenseMatrix dense = random_matrix(130, 67, density, 61);
    const TcaBmeMatrix packed = encode(dense, context.pool);
    std::vector<Half> values(packed.view().values, packed.view().values + packed.view().nonzeros);
    values.shrink_to_fit();
    TcaBmeView view = packed.view();
    view.values = values.data();
    const LinearWeight weight = cpu::prepare_linear(context, TcaBmeMatrix(view, packed.storage()), nullptr);
    for (int n : {1, 8}) {
      const std::vector<Half> x = random_halves(n * 67, 62);
      for (float y : run_logits(context, weight.view, x, n, GetParam())) EXPECT_TRUE(std::isfinite(y));
    }
  }
}

TEST_P(CpuLinear, WideOffsetsGiveTheSameResult) {
  const DenseMatrix dense = random_matrix(130, 200, 0.5, 71);
  const TcaBmeMatrix wide = format::encode(dense, context.pool, {}, format::OffsetWidth::bits64);
  const LinearWeight a = cpu::prepare_linear(context, wide, nullptr);
  const LinearWeight b = cpu::prepare_linear(context, encode(dense, context.pool), nullptr);
  for (int n : {1, 6}) {
    const std::vector<Half> x = random_halves(n * 200, 72);
    EXPECT_EQ(bits_of(run_logits(context, a.view, x, n, GetParam())),
              bits_of(run_logits(context, b.view, x, n, GetParam())));
  }
}

TEST(CpuPrepareLinear, CountsBytesAndKeepsTheWeightAlive) {
  DeviceContext context{DeviceOptions{.threads = 1}};
  LinearWeight dense_weight, packed_weight;
  std::vector<Half> x = random_halves(100, 82);
  std::vector<Half> expected(70, kNan), y(70, kNan);
  {
    const DenseMatrix dense = random_matrix(70, 100, 0.5, 81);
    const std::vector<Half> bias = random_halves(70, 83);
    dense_weight = cpu::prepare_linear(context, dense, bias.data());
    packed_weight = cpu::prepare_linear(context, encode(dense, context.pool), bias.data());
    EXPECT_EQ(dense_weight.nonzeros, count_nonzeros(dense, context.pool));
    cpu::linear(context, {dense_weight.view, x.data(), 1, Activation::none, nullptr, expected.data()});
  }
  cpu::linear(context, {packed_weight.view, x.data(), 1, Activation::none, nullptr, y.data()});
  EXPECT_EQ(y, expected);
  EXPECT_EQ(packed_weight.nonzeros, dense_weight.nonzeros);
  EXPECT_EQ(dense_weight.dense_bytes, 2 * 70 * 100);
  EXPECT_EQ(dense_weight.packed_bytes, 2 * 70 * 100);
  EXPECT_EQ(packed_weight.dense_bytes, 2 * 70 * 100);
  EXPECT_EQ(packed_weight.packed_bytes, tca_bme_bytes(70, 100, packed_weight.nonzeros));
  EXPECT_EQ(packed_weight.device_bytes, packed_weight.packed_bytes);
}

TEST(CpuLinearEmpty, NoTokensDoNothing) {
  DeviceContext context{DeviceOptions{.threads = 1}};
  const LinearWeight weight = cpu::prepare_linear(context, random_matrix(5, 5, 1, 1), nullptr);
  Half y = kNan;
  cpu::linear(context, {weight.view, nullptr, 0, Activation::none, nullptr, &y});
  EXPECT_EQ(y, kNan);
}

}  // namespace
}  // namespace spinfer
