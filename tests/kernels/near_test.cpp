#include "tests/kernels/near.h"

#include <limits>

namespace spinfer::test {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

bool is_near(float got, double want, Tolerance tolerance = {0.5, 0}) {
  return bool(near(std::vector<float>{1, got}, std::vector<double>{1, want}, tolerance));
}

TEST(Near, AcceptsWhatIsWithinTheTolerance) {
  EXPECT_TRUE(is_near(2, 2));
  EXPECT_TRUE(is_near(2.5, 2));
  EXPECT_TRUE(is_near(101, 100, {0, 0.01}));
  EXPECT_TRUE(is_near(kInf, kInf));
}

TEST(Near, RefusesWhatIsNot) {
  EXPECT_FALSE(is_near(2.51f, 2));
  EXPECT_FALSE(is_near(-2, 2));
  EXPECT_FALSE(is_near(kInf, 2, {1e300, 1}));
  EXPECT_FALSE(is_near(kInf, -double(kInf)));
  EXPECT_FALSE(is_near(2, kInf));
}

TEST(Near, RefusesNanOnEitherSide) {
  EXPECT_FALSE(is_near(kNan, 2));
  EXPECT_FALSE(is_near(2, kNan));
  EXPECT_FALSE(is_near(kNan, kNan));
  EXPECT_FALSE(is_near(kNan, 2, {std::numeric_limits<double>::infinity(), 0}));
}

TEST(Near, RefusesAnotherNumberOfElements) {
  EXPECT_FALSE(near(std::vector<float>{}, std::vector<double>{1}, {1, 1}));
  EXPECT_FALSE(near(std::vector<float>{1, 1}, std::vector<double>{1}, {1, 1}));
}

TEST(Near, HalfRoundingIsTightAndSufficient) {
  for (double x = 1e-9; x < 60000; x *= 1.0371) {
    const Half half = to_half(float(x));
    EXPECT_TRUE(near(std::vector<Half>{half}, {x}, kHalfRounding)) << x;
    const Half off{uint16_t(half.bits + 2)};
    EXPECT_FALSE(near(std::vector<Half>{off}, {x}, kHalfRounding)) << x;
  }
}

}  // namespace
}  // namespace spinfer::test
