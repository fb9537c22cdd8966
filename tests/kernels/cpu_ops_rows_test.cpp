// embed, gather_rows, gated_activation and add_norm against double-precision references.
#include <cmath>
#include <numeric>

#include "kernels/check.h"
#include "kernels/cpu/activation.h"
#include "tests/kernels/cpu_ops.h"

namespace spinfer::test {
namespace {

constexpr int kTokens[] = {0, 1, 3, 17};
constexpr int kSizes[] = {1, 7, 64, 130, 4096};

double reference_activation(Activation act, double x) {
  switch (act) {
    case Activation::none:
      return x;
    case Activation::relu:
      return std::max(x, 0.0);
    case Activation::gelu:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::silu:
      return x / (1 + std::exp(-x));
  }
  return NAN;
}

constexpr Activation kActivations[] = {Activation::none, Activation::relu, Activation::gelu,
                                       Activation::gelu_tanh, Activation::silu};

using CpuRows = CpuOps;
SPINFER_ON_ALL_TARGETS(CpuRows);

TEST_P(CpuRows, EmbedCopiesAndAccumulates) {
  Random random(1);
  constexpr int kRows = 50, kOffset = 2;
  for (const int n : kTokens) {
    for (const int d : kSizes) {
      const auto table = random.halves(size_t(kRows) * d);
      std::vector<int32_t> ids(n);
      for (auto& id : ids) id = random.below(kRows - kOffset);
      auto out = nan_halves(size_t(n) * d);
      ops_.embed(context_, {.ids = ids.data(),
                            .id_offset = kOffset,
                            .table = table.data(),
                            .rows = kRows,
                            .n = n,
                            .d = d,
                            .out = out.data()});
      std::vector<double> want;
      for (int i = 0; i < n; ++i)
        for (int j = 0; j < d; ++j) want.push_back(to_double(table[size_t(ids[i] + kOffset) * d + j]));
      EXPECT_TRUE(near(out, want, {0, 0}));

      ops_.embed(context_, {.ids = ids.data(),
                            .id_offset = kOffset - 1,
                            .table = table.data(),
                            .rows = kRows,
                            .n = n,
                            .d = d,
                            .accumulate = true,
                            .out = out.data()});
      for (int i = 0; i < n; ++i)
        for (int j = 0; j < d; ++j)
          want[size_t(i) * d + j] += to_double(table[size_t(ids[i] + kOffset - 1) * d + j]);
      EXPECT_TRUE(near(out, want, kHalfRounding));
    }
  }
}

TEST_P(CpuRows, EmbedRefusesIdsOutsideTheTable) {
  const std::vector<Half> table(20);
  std::vector<Half> out(2);
  for (const int32_t id : {-3, 8, 1 << 30, std::numeric_limits<int32_t>::max()}) {
    const EmbedArgs args{
        .ids = &id, .id_offset = 2, .table = table.data(), .rows = 10, .n = 1, .d = 2, .out = out.data()};
    EXPECT_THROW(ops_.embed(context_, args), Error) << id;
  }
}

TEST_P(CpuRows, GatherCopiesRows) {
  Random random(2);
  for (const int n : kTokens) {
    for (const int d : kSizes) {
      const auto source = random.halves(size_t(20) * d);
      std::vector<int32_t> rows(n);
      for (auto& row : rows) row = random.below(20);
      auto out = nan_halves(size_t(n) * d);
      ops_.gather_rows(context_,
                       {.src = source.data(), .rows = rows.data(), .n = n, .d = d, .out = out.data()});
      for (int i = 0; i < n; ++i)
        EXPECT_TRUE(std::equal(&out[size_t(i) * d], &out[size_t(i) * d] + d, &source[size_t(rows[i]) * d]));
    }
  }
}

TEST_P(CpuRows, GatedActivationMatchesTheReference) {
  Random random(3);
  for (const Activation act : kActivations) {
    for (const int n : kTokens) {
      for (const int f : kSizes) {
        const auto gate_up = random.halves(size_t(n) * 2 * f, 3);
        auto out = nan_halves(size_t(n) * f);
        ops_.gated_activation(context_,
                              {.gate_up = gate_up.data(), .n = n, .f = f, .act = act, .out = out.data()});
        std::vector<double> want;
        for (int i = 0; i < n; ++i) {
          const Half* gate = &gate_up[size_t(i) * 2 * f];
          for (int j = 0; j < f; ++j)
            want.push_back(reference_activation(act, to_double(gate[j])) * to_double(gate[f + j]));
        }
        EXPECT_TRUE(near(out, want, half_rounding_after(1e-5)));
      }
    }
  }
}

// Every fp16 value: an fp32 activation may be off by a few units in the last place of its largest
// intermediate, |x|.
TEST(Activation, MatchesTheReferenceOnEveryHalf) {
  for (const Activation act : kActivations) {
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
      const float x = to_float(Half{uint16_t(bits)});
      const float got = cpu::activate(act, x);
      if (std::isnan(x)) {
        EXPECT_TRUE(std::isnan(got));
      } else if (std::isfinite(x)) {
        EXPECT_NEAR(got, reference_activation(act, x), 4e-7 * std::abs(x) + 1e-30)
            << "activation " << int(act) << " of " << x;
      }
    }
  }
}

struct NormCase {
  NormKind kind;
  bool delta, gain, bias, in_place;
};

/// h (updated), then the norm, in double; the addition rounds to fp16 as the contract says.
std::vector<double> reference_norm(const AddNormArgs& a, std::vector<Half>& h) {
  std::vector<double> out;
  for (int i = 0; i < a.n; ++i) {
    Half* row = &h[size_t(i) * a.d];
    double mean = 0, square = 0;
    for (int j = 0; j < a.d; ++j) {
      if (a.delta) row[j] = to_half(to_float(row[j]) + to_float(a.delta[size_t(i) * a.d + j]));
      mean += to_double(row[j]) / a.d;
    }
    if (a.kind == NormKind::rms) mean = 0;
    for (int j = 0; j < a.d; ++j) square += std::pow(to_double(row[j]) - mean, 2) / a.d;
    for (int j = 0; j < a.d; ++j)
      out.push_back((to_double(row[j]) - mean) / std::sqrt(square + a.eps) *
                        (a.gain ? to_double(a.gain[j]) : 1) +
                    (a.bias ? to_double(a.bias[j]) : 0));
  }
  return out;
}

TEST_P(CpuRows, AddNormMatchesTheReference) {
  Random random(4);
  const NormCase cases[] = {
      {NormKind::rms, false, true, false, false}, {NormKind::rms, true, true, false, false},
      {NormKind::layer, true, true, true, false}, {NormKind::layer, false, false, false, false},
      {NormKind::layer, true, true, true, true},  {NormKind::rms, true, true, false, true}};
  for (const NormCase& c : cases) {
    for (const int n : kTokens) {
      for (const int d : kSizes) {
        auto h = random.halves(size_t(n) * d, 2, 3);  // a mean larger than the deviation
        auto delta = random.halves(size_t(n) * d);
        const auto gain = random.halves(d, 0.2f, 1), bias = random.halves(d);
        auto out = nan_halves(size_t(n) * d);
        const AddNormArgs args{.h = h.data(),
                               .delta = c.delta ? delta.data() : nullptr,
                               .kind = c.kind,
                               .gain = c.gain ? gain.data() : nullptr,
                               .bias = c.bias ? bias.data() : nullptr,
                               .eps = 1e-5f,
                               .n = n,
                               .d = d,
                               .out = c.in_place ? h.data() : out.data()};
        auto h_want = h;
        const auto want = reference_norm(args, h_want);
        ops_.add_norm(context_, args);
        // fp32 sums of d terms and (h − mean)/σ, where |h − mean|/σ ≤ √d; the mean is about as large as σ.
        const double error = 2e-6 * std::sqrt(double(d));
        EXPECT_TRUE(near(c.in_place ? h : out, want, half_rounding_after(error))) << "n " << n << " d " << d;
        if (!c.in_place) {
          EXPECT_EQ(h, h_want);
        }
      }
    }
  }
}

TEST_P(CpuRows, AddNormWithoutOutputOnlyAdds) {
  Random random(5);
  auto h = random.halves(3 * 130);
  auto delta = random.halves(3 * 130);
  const AddNormArgs args{.h = h.data(),
                         .delta = delta.data(),
                         .kind = NormKind::rms,
                         .gain = nullptr,
                         .bias = nullptr,
                         .eps = 1e-5f,
                         .n = 3,
                         .d = 130,
                         .out = nullptr};
  auto want = h;
  reference_norm(args, want);
  ops_.add_norm(context_, args);
  EXPECT_EQ(h, want);
}

// SIMD conversions must round like to_half: ties to even, subnormals, overflow. An addition of −0 shows them
// all.
TEST_P(CpuRows, AdditionRoundsLikeToHalf) {
  std::vector<Half> h, delta, want;
  for (uint32_t a = 0; a < 0x7c00; a += 13) {
    for (const uint16_t b : {0x0001, 0x03ff, 0x1400, 0x3555, 0x8400, 0x7bff}) {
      h.push_back({uint16_t(a)});
      delta.push_back({b});
      want.push_back(to_half(to_float(h.back()) + to_float(delta.back())));
    }
  }
  const int d = int(h.size());
  ops_.add_norm(context_, {.h = h.data(),
                           .delta = delta.data(),
                           .kind = NormKind::rms,
                           .gain = nullptr,
                           .bias = nullptr,
                           .eps = 1e-5f,
                           .n = 1,
                           .d = d,
                           .out = nullptr});
  EXPECT_EQ(h, want);
}

TEST_P(CpuRows, NanInARowStaysInThatRow) {
  Random random(6);
  constexpr int kRows = 3, kWidth = 130;
  auto h = random.halves(kRows * kWidth);
  h[kWidth + 129] = kNanHalf;
  auto out = nan_halves(h.size());
  ops_.add_norm(context_, {.h = h.data(),
                           .delta = nullptr,
                           .kind = NormKind::layer,
                           .gain = nullptr,
                           .bias = nullptr,
                           .eps = 1e-5f,
                           .n = kRows,
                           .d = kWidth,
                           .out = out.data()});
  for (int i = 0; i < kRows * kWidth; ++i) EXPECT_EQ(std::isnan(to_float(out[i])), i / kWidth == 1) << i;
}

}  // namespace
}  // namespace spinfer::test
