// How finely what is tuned or recorded for a number of tokens tells such numbers apart.
#pragma once

#include <bit>

namespace spinfer {

/// The number of tokens that n counts as: 1, 2, 4, 8, then multiples of 8 up to 64 (the tensor cores take 8
/// at a time), then a quarter of a power of two apart: 80, 96, 112, 128, 160, …. At most n + max(7, n/4).
constexpr int token_bucket(int n) {
  if (n <= 8) return int(std::bit_ceil(unsigned(n)));
  const int step = n <= 64 ? 8 : int(std::bit_floor(unsigned(n - 1))) / 4;
  return (n + step - 1) / step * step;
}

}  // namespace spinfer
