// Comparing results with a double-precision reference.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <span>
#include <vector>

#include "kernels/half.h"

namespace spinfer::test {

/// |got − want| ≤ absolute + relative · |want|.
struct Tolerance {
  double absolute = 0;
  double relative = 0;
};

/// One rounding to fp16: half a unit in the last of 11 bits, or half the smallest subnormal.
inline constexpr Tolerance kHalfRounding{0x1p-25, 0x1p-11};
/// kHalfRounding after an fp32 error of at most `absolute`.
inline Tolerance half_rounding_after(double absolute) {
  return {kHalfRounding.absolute + absolute * (1 + kHalfRounding.relative), kHalfRounding.relative};
}

inline double to_double(Half x) {
  return double(to_float(x));
}
inline double to_double(float x) {
  return double(x);
}

/// Fails on the first element out of tolerance, naming it. NaN fails on either side: no NaN is near anything.
template <class T>
testing::AssertionResult near(std::span<const T> got, std::span<const double> want, Tolerance tolerance) {
  if (got.size() != want.size())
    return testing::AssertionFailure() << got.size() << " elements, expected " << want.size();
  for (size_t i = 0; i < got.size(); ++i) {
    const double x = to_double(got[i]);
    const bool equal = x == want[i];  // infinities
    const bool close = std::abs(x - want[i]) <= tolerance.absolute + tolerance.relative * std::abs(want[i]);
    if (!equal && !(close && std::isfinite(want[i])))
      return testing::AssertionFailure() << "element " << i << " of " << got.size() << " is " << x
                                         << ", expected " << want[i] << ", difference " << x - want[i];
  }
  return testing::AssertionSuccess();
}

template <class T>
testing::AssertionResult near(const std::vector<T>& got, const std::vector<double>& want,
                              Tolerance tolerance) {
  return near(std::span<const T>(got), std::span<const double>(want), tolerance);
}

}  // namespace spinfer::test
