#include "models/bitmask_tensor.h"

#include <bit>
#include <cstring>
#include <numeric>

#include "kernels/check.h"

namespace spinfer {

std::vector<std::byte> expand_bitmask(std::span<const std::byte> bitmask, std::span<const std::byte> values,
                                      int64_t m, int64_t k, int64_t element_bytes, ThreadPool& pool,
                                      const std::string& label) {
  const int64_t row_bytes = (k + 7) / 8;
  const auto bits_of = [&](int64_t row, int64_t byte) {
    return uint8_t(bitmask[size_t(row * row_bytes + byte)]);
  };
  std::vector<int64_t> first(size_t(m) + 1);  // value of each row
  pool.parallel_for(m, [&](int64_t row) {
    check(k % 8 == 0 || bits_of(row, row_bytes - 1) >> (k % 8) == 0,
          "{}: row {} has bits set beyond its {} columns", label, row, k);
    for (int64_t i = 0; i < row_bytes; ++i) first[size_t(row) + 1] += std::popcount(bits_of(row, i));
  });
  std::partial_sum(first.begin(), first.end(), first.begin());
  const int64_t count = int64_t(values.size()) / element_bytes;
  check(first.back() == count, "{}: {} bits are set for {} values", label, first.back(), count);
  std::vector<std::byte> dense(size_t(m * k * element_bytes));
  pool.parallel_for(m, [&](int64_t row) {
    const std::byte* next = values.data() + first[size_t(row)] * element_bytes;
    for (int64_t col = 0; col < k; ++col) {
      if (!(bits_of(row, col / 8) >> (col % 8) & 1)) continue;
      std::memcpy(dense.data() + (row * k + col) * element_bytes, next, size_t(element_bytes));
      next += element_bytes;
    }
  });
  return dense;
}

}  // namespace spinfer
