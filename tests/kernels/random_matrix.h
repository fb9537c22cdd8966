// Random fp16 matrices for tests: Gaussian values under a random mask, with the awkward values sprinkled in.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "kernels/format/tca_bme.h"

namespace spinfer::test {

/// Owns its data: `matrix.storage` keeps it alive.
inline DenseMatrix make_matrix(int64_t m, int64_t k, std::vector<Half> data) {
  auto owned = std::make_shared<std::vector<Half>>(std::move(data));
  return {m, k, owned->data(), owned};
}

/// Each weight is nonzero with probability `density`; the others are +0.
inline DenseMatrix random_matrix(int64_t m, int64_t k, double density, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> value(0.0f, 1.0f);
  std::uniform_real_distribution<double> uniform(0.0, 1.0);
  std::vector<Half> data(size_t(m * k));
  for (Half& w : data) {
    if (uniform(rng) >= density) continue;
    do {
      w = to_half(value(rng));
    } while (is_zero(w));
  }
  return make_matrix(m, k, std::move(data));
}

}  // namespace spinfer::test
