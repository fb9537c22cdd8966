#include "kernels/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>

namespace spinfer {
namespace {

/// The value of finite half bits, from the definition of binary16.
double value_of(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

TEST(Half, EveryPatternConvertsToItsValueAndBack) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const Half h{uint16_t(bits)};
    const float f = to_float(h);
    if ((bits & 0x7fff) > 0x7c00) {
      EXPECT_TRUE(std::isnan(f)) << bits;
      EXPECT_GT(to_half(f).bits & 0x7fff, 0x7c00) << bits;
      continue;
    }
    if ((bits & 0x7fff) == 0x7c00) {
      EXPECT_EQ(f, bits & 0x8000 ? -std::numeric_limits<float>::infinity()
                                 : std::numeric_limits<float>::infinity());
    } else {
      EXPECT_EQ(double(f), value_of(uint16_t(bits))) << bits;
    }
    EXPECT_EQ(std::signbit(f), bool(bits & 0x8000)) << bits;
    EXPECT_EQ(to_half(f), h) << bits;
    EXPECT_EQ(is_zero(h), f == 0.0f) << bits;
  }
}

TEST(Half, RoundsToNearestEven) {
  // Between each pair of neighbours: a quarter, the middle, three quarters, and one float step off the
  // middle.
  for (uint16_t low = 0; low < 0x7bff; ++low) {
    const Half a{low}, b{uint16_t(low + 1)};
    const float x = to_float(a), y = to_float(b), middle = (x + y) / 2;
    const Half even = low % 2 == 0 ? a : b;
    EXPECT_EQ(to_half(x + (y - x) / 4), a) << low;
    EXPECT_EQ(to_half(x + (y - x) * 3 / 4), b) << low;
    EXPECT_EQ(to_half(middle), even) << low;
    EXPECT_EQ(to_half(std::nextafter(middle, x)), a) << low;
    EXPECT_EQ(to_half(std::nextafter(middle, y)), b) << low;
    EXPECT_EQ(to_half(-middle).bits, even.bits | 0x8000) << low;
  }
}

TEST(Half, OverflowsToInfinityAndUnderflowsToZero) {
  EXPECT_EQ(to_half(65504.0f).bits, 0x7bff);
  EXPECT_EQ(to_half(65519.996f).bits, 0x7bff);
  EXPECT_EQ(to_half(65520.0f).bits, 0x7c00);
  EXPECT_EQ(to_half(-1e30f).bits, 0xfc00);
  EXPECT_EQ(to_half(std::numeric_limits<float>::infinity()).bits, 0x7c00);
  EXPECT_EQ(to_half(0x1p-25f).bits, 0);  // tie with the smallest subnormal: to even
  EXPECT_EQ(to_half(std::nextafter(0x1p-25f, 1.0f)).bits, 1);
  EXPECT_EQ(to_half(-1e-40f).bits, 0x8000);
  EXPECT_EQ(to_half(std::numeric_limits<float>::denorm_min()).bits, 0);
}

TEST(Half, KeepsNan) {
  EXPECT_TRUE(std::isnan(to_float(to_half(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isnan(to_float(to_half(std::bit_cast<float>(0x7f800001u)))));
}

}  // namespace
}  // namespace spinfer
