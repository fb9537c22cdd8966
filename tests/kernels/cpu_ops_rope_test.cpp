// rope_append against a double-precision reference.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/kernels/cpu_ops.h"

namespace spinfer::test {
namespace {

using CpuRope = CpuOps;
SPINFER_ON_ALL_TARGETS(CpuRope);

struct RopeCase {
  int n, q_heads, kv_heads, head_dim;
  bool rotate;
};

constexpr int kBlockSize = 16, kBlocks = 12;

TEST_P(CpuRope, RotatesAndAppends) {
  Random random(1);
  const RopeCase cases[] = {{1, 1, 1, 8, true},   {3, 4, 2, 16, true},  {17, 8, 1, 64, true},
                            {3, 6, 6, 80, false}, {17, 8, 2, 96, true}, {40, 8, 8, 128, true},
                            {0, 2, 2, 64, true}};
  for (const RopeCase& c : cases) {
    const int width = (c.q_heads + 2 * c.kv_heads) * c.head_dim, half = c.head_dim / 2;
    auto qkv = random.halves(size_t(c.n) * width);
    const auto before = qkv;
    std::vector<float> inv_freq(half);
    for (int i = 0; i < half; ++i) inv_freq[i] = std::pow(10000.0f, -float(i) / float(half));
    // Slots are shuffled; every third token is graph padding and is not stored.
    std::vector<int32_t> all_slots(kBlocks * kBlockSize), positions(c.n), slots(c.n);
    std::iota(all_slots.begin(), all_slots.end(), 0);
    std::shuffle(all_slots.begin(), all_slots.end(), random.engine());
    for (int i = 0; i < c.n; ++i) {
      positions[i] = random.below(4096);
      slots[i] = i % 3 == 2 ? -1 : all_slots[i];
    }
    auto k = nan_halves(size_t(kBlocks) * c.kv_heads * kBlockSize * c.head_dim), v = k;
    ops_.rope_append(context_, {.qkv = qkv.data(),
                                .positions = positions.data(),
                                .slots = slots.data(),
                                .inv_freq = c.rotate ? inv_freq.data() : nullptr,
                                .n = c.n,
                                .q_heads = c.q_heads,
                                .kv_heads = c.kv_heads,
                                .head_dim = c.head_dim,
                                .block_size = kBlockSize,
                                .kv = {k.data(), v.data()}});

    std::vector<double> want;
    for (int t = 0; t < c.n; ++t) {
      for (int j = 0; j < width; ++j) {
        const int head = j / c.head_dim, i = j % c.head_dim % half;
        const bool second = j % c.head_dim >= half;
        const double x = to_double(before[size_t(t) * width + j]);
        if (!c.rotate || head >= c.q_heads + c.kv_heads) {
          want.push_back(x);
          continue;
        }
        const double angle = double(float(positions[t]) * inv_freq[i]);  // the contract: angles are fp32
        const double other = to_double(before[size_t(t) * width + j + (second ? -half : half)]);
        want.push_back(second ? x * std::cos(angle) + other * std::sin(angle)
                              : x * std::cos(angle) - other * std::sin(angle));
      }
    }
    EXPECT_TRUE(near(qkv, want, half_rounding_after(2e-6)));

    // The cache holds exactly the rotated keys and the values, at the slots, and nothing elsewhere.
    auto k_want = nan_halves(k.size()), v_want = k_want;
    for (int t = 0; t < c.n; ++t) {
      if (slots[t] < 0) continue;
      for (int head = 0; head < c.kv_heads; ++head) {
        const size_t row =
            size_t(slots[t] / kBlockSize * c.kv_heads + head) * kBlockSize + slots[t] % kBlockSize;
        const size_t source = size_t(t) * width + size_t(c.q_heads + head) * c.head_dim;
        std::copy_n(&qkv[source], c.head_dim, &k_want[row * c.head_dim]);
        std::copy_n(&qkv[source + size_t(c.kv_heads) * c.head_dim], c.head_dim, &v_want[row * c.head_dim]);
      }
    }
    EXPECT_EQ(k, k_want);
    EXPECT_EQ(v, v_want);
  }
}

}  // namespace
}  // namespace spinfer::test
