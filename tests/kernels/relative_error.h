// ‖y − ref‖ / ‖ref‖, the way kernels are judged. Not a number anywhere is an infinite error.
#pragma once

#include <cmath>
#include <limits>
#include <span>

#include "kernels/half.h"

namespace spinfer {

/// Infinity where sizes differ or any y or ref is NaN or infinite; ‖y‖ itself where ref is all zero.
inline double relative_error(std::span<const Half> y, std::span<const float> ref) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (y.size() != ref.size()) return kInfinity;
  double difference = 0, norm = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    const double value = to_float(y[i]), expected = ref[i];
    difference += (value - expected) * (value - expected);
    norm += expected * expected;
  }
  if (!std::isfinite(difference) || !std::isfinite(norm)) return kInfinity;
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

}  // namespace spinfer
