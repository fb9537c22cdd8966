// Validation of matrices that come from files. Nothing is read through the view before the counts say that it
// is there.
#include <bit>

#include "kernels/check.h"
#include "kernels/format/tca_bme.h"

namespace spinfer {
namespace {

/// Bits of bitmap `b` whose position lies inside the first `rows` rows and `cols` columns of the GroupTile.
uint64_t legal_bits(int b, int64_t rows, int64_t cols) {
  uint64_t legal = 0;
  for (int bit = 0; bit < 64; ++bit) {
    const TilePosition p = position_of({b, bit});
    if (p.row < rows && p.col < cols) legal |= uint64_t{1} << bit;
  }
  return legal;
}

void check_sizes(const TcaBmeView& w, const char* name) {
  check(w.m >= 1 && w.m <= kMaxDimension, "{}: {} rows, must be 1…{}", name, w.m, kMaxDimension);
  check(w.k >= 1 && w.k <= kMaxDimension, "{}: {} columns, must be 1…{}", name, w.k, kMaxDimension);
  check(w.nonzeros >= 0 && w.nonzeros <= w.m * w.k, "{}: {} nonzeros in {}×{}, must be 0…{}", name,
        w.nonzeros, w.m, w.k, w.m * w.k);
}

void check_arrays(const TcaBmeView& w, size_t bitmap_count, size_t value_count, size_t offset_count,
                  const char* name) {
  const auto tiles = uint64_t(w.tiles());  // at most 2^50: kMaxDimension / 64, squared
  check(bitmap_count == tiles * kBitmapsPerGroupTile, "{}: {} bitmaps, {}×{} needs {}", name, bitmap_count,
        w.m, w.k, tiles * kBitmapsPerGroupTile);
  check(offset_count == tiles + 1, "{}: {} offsets, {}×{} needs {}", name, offset_count, w.m, w.k, tiles + 1);
  check(value_count == uint64_t(w.nonzeros), "{}: {} values, but the nonzeros are {}", name, value_count,
        w.nonzeros);
  check((w.offsets32 == nullptr) != (w.offsets64 == nullptr),
        "{}: offsets must be 32-bit or 64-bit, one of the two", name);
  check(w.offsets64 != nullptr || fits_offsets32(w.nonzeros),
        "{}: {} nonzeros need 64-bit offsets, these are 32-bit", name, w.nonzeros);
  check(w.bitmaps != nullptr && (w.values != nullptr || w.nonzeros == 0), "{}: bitmaps or values are missing",
        name);
  const auto aligned = [](const void* p, size_t to) { return reinterpret_cast<uintptr_t>(p) % to == 0; };
  check(aligned(w.bitmaps, 8) && aligned(w.offsets64, 8) && aligned(w.offsets32, 4) && aligned(w.values, 2),
        "{}: bitmaps, offsets or values are not aligned in memory to their own size", name);
}

}  // namespace

void validate(const TcaBmeView& w, size_t bitmap_count, size_t value_count, size_t offset_count,
              const char* name) {
  check_sizes(w, name);
  check_arrays(w, bitmap_count, value_count, offset_count, name);

  check(w.offset(0) == 0, "{}: the first offset is {}, must be 0", name, uint64_t(w.offset(0)));
  const int64_t tile_cols = group_tiles(w.k);
  int64_t expected = 0;
  for (int64_t tile = 0; tile < w.tiles(); ++tile) {
    const int64_t rows = w.m - tile / tile_cols * kGroupTile, cols = w.k - tile % tile_cols * kGroupTile;
    const uint64_t* bitmaps = w.bitmaps + tile * kBitmapsPerGroupTile;
    for (int b = 0; b < kBitmapsPerGroupTile; ++b) expected += std::popcount(bitmaps[b]);
    if (rows < kGroupTile || cols < kGroupTile) {
      for (int b = 0; b < kBitmapsPerGroupTile; ++b) {
        check((bitmaps[b] & ~legal_bits(b, rows, cols)) == 0,
              "{}: bitmap {} of tile {} has bits in the padding of {}×{}", name, b, tile, w.m, w.k);
      }
    }
    check(w.offset(tile + 1) == expected, "{}: offset {} is {}, the bitmaps before it have {} bits", name,
          tile + 1, uint64_t(w.offset(tile + 1)), expected);
  }
  check(expected == w.nonzeros, "{}: the bitmaps have {} bits, but there are {} values", name, expected,
        w.nonzeros);
}

}  // namespace spinfer
