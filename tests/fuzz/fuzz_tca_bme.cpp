// validate must never read past the arrays, and what it accepts must decode, multiply, slice and encode back
// to itself.
//
// Input: a header of numbers, then bytes for the arrays. Arrays lie in heap blocks of exactly their size, so
// that AddressSanitizer sees any read beyond the counts. Random offsets are almost never right, so the header
// says whether to compute offsets and padding bits as they should be, and which single number to damage
// afterwards.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/check.h"
#include "kernels/cpu/linear.h"
#include "kernels/format/tca_bme.h"

namespace {

using namespace spinfer;

class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  template <class T>
  T take() {
    T value{};
    const size_t bytes = std::min(sizeof(T), size_);
    std::memcpy(&value, data_, bytes);
    data_ += bytes;
    size_ -= bytes;
    return value;
  }
  template <class T>
  std::vector<T> take_array(size_t count) {
    std::vector<T> values;
    values.reserve(count);
    for (size_t i = 0; i < count; ++i) values.push_back(take<T>());
    return values;
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

/// Clears padding bits and makes the offsets the running count. Returns the nonzeros.
template <class Offset>
int64_t repair(int64_t m, int64_t k, std::vector<uint64_t>& bitmaps, std::vector<Offset>& offsets) {
  int64_t nonzeros = 0;
  const int64_t tile_cols = group_tiles(k);
  for (size_t i = 0; i < bitmaps.size(); ++i) {
    const auto tile = int64_t(i / kBitmapsPerGroupTile);
    for (int bit = 0; bit < 64; ++bit) {
      const TilePosition p = position_of({int(i % kBitmapsPerGroupTile), bit});
      const bool inside =
          tile / tile_cols * kGroupTile + p.row < m && tile % tile_cols * kGroupTile + p.col < k;
      if (!inside) bitmaps[i] &= ~(uint64_t{1} << bit);
    }
    if (i % kBitmapsPerGroupTile == 0 && size_t(tile) < offsets.size())
      offsets[size_t(tile)] = Offset(nonzeros);
    nonzeros += std::popcount(bitmaps[i]);
  }
  if (!offsets.empty()) offsets.back() = Offset(nonzeros);
  return nonzeros;
}

void require(bool ok) {
  if (!ok) __builtin_trap();
}

/// What validate accepted.
void use(const TcaBmeView& w) {
  static DeviceContext context(DeviceOptions{.threads = 1});
  const DenseMatrix dense = decode(w, context.pool);
  const TcaBmeMatrix again = encode(dense, context.pool);
  int64_t zeros_among_values = 0;  // a file may list a value that is ±0: it decodes, but is not encoded again
  for (int64_t i = 0; i < w.nonzeros; ++i) zeros_among_values += is_zero(w.values[i]);
  require(again.view().nonzeros == w.nonzeros - zeros_among_values);
  if (zeros_among_values == 0) {
    require(std::memcmp(again.view().bitmaps, w.bitmaps, size_t(w.tiles()) * kBitmapsPerGroupTile * 8) == 0);
    require(w.nonzeros == 0 ||
            std::memcmp(again.view().values, w.values, size_t(w.nonzeros) * sizeof(Half)) == 0);
  }
  const TcaBmeMatrix matrix(w, nullptr);
  const int64_t row = w.m > kGroupTile ? kGroupTile : w.m, col = w.k > kGroupTile ? kGroupTile : w.k;
  require(slice_rows(matrix, 0, row).view().nonzeros + slice_rows(matrix, row, w.m).view().nonzeros ==
          w.nonzeros);
  require(slice_cols(matrix, 0, col, context.pool).view().nonzeros +
              slice_cols(matrix, col, w.k, context.pool).view().nonzeros ==
          w.nonzeros);

  const LinearWeight weight = cpu::prepare_linear(context, matrix, nullptr);
  for (int n : {1, 5}) {
    const std::vector<Half> x(size_t(n * w.k), to_half(1.0f));
    std::vector<float> y(size_t(n * w.m));
    cpu::logits(context, {weight.view, x.data(), n, y.data()});
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const auto flags = input.take<uint8_t>();
  const bool claim_anything = flags & 1, wide = flags & 2, correct = flags & 4;
  TcaBmeView w;
  w.m = input.take<uint8_t>() + 1;
  w.k = input.take<uint8_t>() + 1;
  const auto damage_at = input.take<uint16_t>();
  const auto damage = input.take<uint64_t>();

  const auto tiles = size_t(w.tiles());
  auto bitmap_count = tiles * kBitmapsPerGroupTile, offset_count = tiles + 1;
  if (!correct) bitmap_count = input.take<uint16_t>() % 1200, offset_count = input.take<uint8_t>();
  std::vector<uint64_t> bitmaps = input.take_array<uint64_t>(bitmap_count);
  std::vector<uint32_t> offsets32 = wide ? std::vector<uint32_t>() : input.take_array<uint32_t>(offset_count);
  std::vector<uint64_t> offsets64 = wide ? input.take_array<uint64_t>(offset_count) : std::vector<uint64_t>();
  if (correct) {
    w.nonzeros = wide ? repair(w.m, w.k, bitmaps, offsets64) : repair(w.m, w.k, bitmaps, offsets32);
  } else {
    w.nonzeros = input.take<uint16_t>();
  }
  const std::vector<Half> values = input.take_array<Half>(size_t(w.nonzeros));
  if (claim_anything) {  // damage one number
    const size_t at = damage_at % 8;
    if (at == 0) w.m = int64_t(damage);
    if (at == 1) w.k = int64_t(damage);
    if (at == 2) w.nonzeros = int64_t(damage);
    if (at == 3 && !bitmaps.empty()) bitmaps[damage_at / 8 % bitmaps.size()] ^= damage;
    if (at >= 4 && !offsets32.empty()) offsets32[damage_at / 8 % offsets32.size()] ^= uint32_t(damage);
    if (at >= 4 && !offsets64.empty()) offsets64[damage_at / 8 % offsets64.size()] ^= damage;
  }
  w.bitmaps = bitmaps.data();
  w.values = values.data();
  w.offsets32 = wide ? nullptr : offsets32.data();
  w.offsets64 = wide ? offsets64.data() : nullptr;
  try {
    validate(w, bitmap_count, values.size(), offset_count, "fuzz");
  } catch (const Error& error) {
    require(std::strchr(error.what(), '\n') == nullptr);
    return 0;
  }
  use(w);
  return 0;
}
