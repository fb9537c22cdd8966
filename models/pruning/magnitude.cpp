#include "models/pruning/magnitude.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <mutex>
#include <vector>

namespace spinfer {
namespace {

// |w| of finite halves is ordered as the 15 bits below the sign.
constexpr int kMagnitudes = 1 << 15;
uint16_t magnitude(Half h) {
  return h.bits & 0x7fff;
}

/// Zeroes weights below `threshold`, and the first `at_threshold` of those that equal it.
void apply(Half* weights, int64_t count, uint16_t threshold, int64_t at_threshold) {
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t size = magnitude(weights[i]);
    if (size < threshold || (size == threshold && at_threshold-- > 0)) weights[i] = Half{};
  }
}

void prune_row(Half* row, int64_t k, int64_t zeros, std::vector<uint16_t>& sizes) {
  if (zeros == 0) return;
  sizes.resize(size_t(k));
  std::transform(row, row + k, sizes.begin(), magnitude);
  const auto nth = sizes.begin() + (zeros - 1);
  std::nth_element(sizes.begin(), nth, sizes.end());
  const auto below = std::count_if(sizes.begin(), sizes.end(), [t = *nth](uint16_t s) { return s < t; });
  apply(row, k, *nth, zeros - below);
}

void prune_whole(Half* weights, int64_t m, int64_t k, int64_t zeros, ThreadPool& pool) {
  if (zeros == 0) return;
  std::vector<int64_t> histogram(kMagnitudes);
  std::mutex mutex;
  pool.run([&](int thread, int threads) {
    std::vector<int64_t> mine(kMagnitudes);
    for (int64_t i = m * thread / threads * k; i < m * (thread + 1) / threads * k; ++i)
      ++mine[magnitude(weights[i])];
    const std::lock_guard lock(mutex);
    for (size_t i = 0; i < mine.size(); ++i) histogram[i] += mine[i];
  });
  int threshold = 0;
  int64_t below = 0;
  while (below + histogram[size_t(threshold)] < zeros) below += histogram[size_t(threshold++)];
  // Rows take their share of the equal ones in order.
  std::vector<int64_t> equal(size_t(m) + 1);
  pool.parallel_for(m, [&](int64_t r) {
    equal[size_t(r) + 1] = std::count_if(weights + r * k, weights + (r + 1) * k,
                                         [&](Half h) { return magnitude(h) == threshold; });
  });
  for (int64_t r = 0; r < m; ++r) equal[size_t(r) + 1] += equal[size_t(r)];
  pool.parallel_for(m, [&](int64_t r) {
    apply(weights + r * k, k, uint16_t(threshold), zeros - below - equal[size_t(r)]);
  });
}

}  // namespace

void prune_matrix(Half* weights, int64_t m, int64_t k, double sparsity, PruneScope scope, ThreadPool& pool) {
  if (scope == PruneScope::layer) {
    prune_whole(weights, m, k, std::llround(sparsity * double(m) * double(k)), pool);
    return;
  }
  const int64_t zeros = std::llround(sparsity * double(k));
  pool.run([&](int thread, int threads) {
    std::vector<uint16_t> sizes;
    for (int64_t r = thread; r < m; r += threads) prune_row(weights + r * k, k, zeros, sizes);
  });
}

}  // namespace spinfer
