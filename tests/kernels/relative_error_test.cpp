#include "tests/kernels/relative_error.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace spinfer {
namespace {

std::vector<Half> halves(const std::vector<float>& values) {
  std::vector<Half> result;
  for (float v : values) result.push_back(to_half(v));
  return result;
}

TEST(RelativeError, IsTheNormOfTheDifferenceOverTheNorm) {
  EXPECT_EQ(relative_error(halves({3, 4}), std::vector<float>{3, 4}), 0);
  EXPECT_DOUBLE_EQ(relative_error(halves({3, 9}), std::vector<float>{3, 4}), 1);
  EXPECT_DOUBLE_EQ(relative_error(halves({0, 2}), std::vector<float>{0, 0}), 2);
}

TEST(RelativeError, NeverPassesNanOrInfinity) {
  const float nan = std::numeric_limits<float>::quiet_NaN(),
              infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {nan, infinity, -infinity}) {
    EXPECT_FALSE(relative_error(halves({1, bad}), std::vector<float>{1, 2}) < 1e9);
    EXPECT_FALSE(relative_error(halves({1, 2}), std::vector<float>{1, bad}) < 1e9);
    EXPECT_FALSE(relative_error(halves({bad}), std::vector<float>{bad}) < 1e9);
  }
}

TEST(RelativeError, NeverPassesAnotherSize) {
  EXPECT_FALSE(relative_error(halves({1}), std::vector<float>{1, 1}) < 1e9);
  EXPECT_FALSE(relative_error(halves({}), std::vector<float>{1}) < 1e9);
}

}  // namespace
}  // namespace spinfer
