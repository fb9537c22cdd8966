#include "kernels/format/tca_bme.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/check.h"
#include "kernels/format/tca_bme_arrays.h"
#include "kernels/thread_pool.h"
#include "tests/kernels/random_matrix.h"

namespace spinfer {
namespace {

using test::make_matrix;
using test::random_matrix;

constexpr Half kNan{0x7e01};

/// What decode should give: the matrix with −0 replaced by +0.
std::vector<uint16_t> canonical_bits(const DenseMatrix& dense) {
  std::vector<uint16_t> bits;
  for (int64_t i = 0; i < dense.m * dense.k; ++i)
    bits.push_back(is_zero(dense.data[i]) ? 0 : dense.data[i].bits);
  return bits;
}

std::vector<uint16_t> decoded_bits(const TcaBmeView& matrix, ThreadPool& pool) {
  std::vector<Half> out(size_t(matrix.m * matrix.k), kNan);
  decode(matrix, out.data(), pool);
  std::vector<uint16_t> bits;
  for (Half h : out) bits.push_back(h.bits);
  return bits;
}

void validate_all(const TcaBmeView& w) {
  validate(w, size_t(w.tiles()) * kBitmapsPerGroupTile, size_t(w.nonzeros), size_t(w.tiles()) + 1, "w");
}

/// Same sizes, bitmaps, values, offsets.
void expect_same(const TcaBmeView& a, const TcaBmeView& b) {
  ASSERT_EQ(a.m, b.m);
  ASSERT_EQ(a.k, b.k);
  ASSERT_EQ(a.nonzeros, b.nonzeros);
  for (int64_t t = 0; t <= a.tiles(); ++t) ASSERT_EQ(a.offset(t), b.offset(t)) << "tile " << t;
  ASSERT_TRUE(std::equal(a.bitmaps, a.bitmaps + a.tiles() * kBitmapsPerGroupTile, b.bitmaps));
  ASSERT_TRUE(std::equal(a.values, a.values + a.nonzeros, b.values));
}

DenseMatrix part_of(const DenseMatrix& w, int64_t row, int64_t rows, int64_t col, int64_t cols) {
  std::vector<Half> data;
  for (int64_t r = row; r < row + rows; ++r) {
    data.insert(data.end(), w.data + r * w.k + col, w.data + r * w.k + col + cols);
  }
  return make_matrix(rows, cols, std::move(data));
}

TEST(TcaBme, RoundTripsEverySizeAndDensity) {
  ThreadPool pool(2);
  std::mt19937_64 rng(1);
  std::uniform_int_distribution<int64_t> size(1, 200);
  const double densities[] = {0, 0.05, 0.3, 0.4, 0.5, 0.6, 0.7, 0.95, 1};
  for (int round = 0; round < 90; ++round) {
    const int64_t m = size(rng), k = size(rng);
    const double density = densities[round % 9];
    SCOPED_TRACE(fmt::format("{}x{} density {}", m, k, density));
    const DenseMatrix dense = random_matrix(m, k, density, uint64_t(round));
    const TcaBmeMatrix packed = encode(dense, pool);
    const TcaBmeView& w = packed.view();
    EXPECT_EQ(w.nonzeros, count_nonzeros(dense, pool));
    EXPECT_NO_THROW(validate_all(w));
    EXPECT_EQ(decoded_bits(w, pool), canonical_bits(dense));
    const int64_t padded_m = (m + 63) / 64 * 64, padded_k = (k + 63) / 64 * 64;
    EXPECT_EQ(w.bytes(),
              4 * (padded_m * padded_k / 4096 + 1) + 8 * (padded_m * padded_k / 64) + 2 * w.nonzeros);
    EXPECT_EQ(w.bytes(), int64_t(4 * (w.tiles() + 1) + 8 * 64 * w.tiles() + 2 * w.nonzeros));
  }
}

TEST(TcaBme, RoundTripsMatricesSmallerThanATileInEachDirection) {
  ThreadPool pool(1);
  for (int64_t m : {1, 7, 8, 9, 15, 16, 17, 63, 64, 65}) {
    for (int64_t k : {1, 7, 8, 9, 15, 16, 17, 63, 64, 65}) {
      const DenseMatrix dense = random_matrix(m, k, 0.5, uint64_t(m * 100 + k));
      const TcaBmeMatrix packed = encode(dense, pool);
      EXPECT_NO_THROW(validate_all(packed.view()));
      EXPECT_EQ(decoded_bits(packed.view(), pool), canonical_bits(dense)) << m << "x" << k;
    }
  }
}

TEST(TcaBme, ValuesLieWhereTheHeaderSays) {
  ThreadPool pool(2);
  const DenseMatrix dense = random_matrix(130, 200, 0.5, 5);
  const TcaBmeMatrix packed = encode(dense, pool);
  const TcaBmeView& w = packed.view();
  int64_t value = 0;
  for (int64_t tile = 0; tile < w.tiles(); ++tile) {
    ASSERT_EQ(w.offset(tile), value);
    for (int b = 0; b < 64; ++b) {
      for (int bit = 0; bit < 64; ++bit) {
        const TilePosition p = position_of({b, bit});
        const int64_t row = tile / group_tiles(w.k) * 64 + p.row, col = tile % group_tiles(w.k) * 64 + p.col;
        const bool inside = row < w.m && col < w.k;
        const bool set = w.bitmaps[tile * 64 + b] >> bit & 1;
        ASSERT_EQ(set, inside && !is_zero(dense.data[row * w.k + col]));
        if (set) {
          ASSERT_EQ(w.values[value++], dense.data[row * w.k + col]);
        }
      }
    }
  }
  EXPECT_EQ(value, w.nonzeros);
}

TEST(TcaBme, UnevenMasksFillSomeTilesAndLeaveOthersEmpty) {
  ThreadPool pool(2);
  DenseMatrix dense = random_matrix(192, 256, 1.0, 3);
  std::vector<Half> data(dense.data, dense.data + 192 * 256);
  for (int64_t r = 0; r < 192; ++r) {
    for (int64_t c = 0; c < 256; ++c) {
      const bool empty_tile = (r / 64 + c / 64) % 3 == 1, sparse_row = r % 16 == 3;
      if (empty_tile || (sparse_row && c % 61)) data[size_t(r * 256 + c)] = Half{};
    }
  }
  dense = make_matrix(192, 256, data);
  const TcaBmeMatrix packed = encode(dense, pool);
  EXPECT_NO_THROW(validate_all(packed.view()));
  EXPECT_EQ(packed.view().offset(1), packed.view().offset(2));  // tile 1 is empty
  EXPECT_EQ(decoded_bits(packed.view(), pool), canonical_bits(dense));
}

TEST(TcaBme, ZerosOfBothSignsAreAbsentAndNanAndInfinityAreKept) {
  ThreadPool pool(1);
  const Half plus_zero{0}, minus_zero{0x8000}, inf{0x7c00}, minus_inf{0xfc00}, nan{0x7e12}, tiny{0x0001},
      minus_tiny{0x8001};
  const DenseMatrix dense = make_matrix(
      2, 5, {plus_zero, minus_zero, inf, minus_inf, nan, tiny, minus_tiny, plus_zero, {0x3c00}, minus_zero});
  const TcaBmeMatrix packed = encode(dense, pool);
  EXPECT_EQ(packed.view().nonzeros, 6);
  EXPECT_EQ(count_nonzeros(dense, pool), 6);
  EXPECT_EQ(decoded_bits(packed.view(), pool),
            (std::vector<uint16_t>{0, 0, 0x7c00, 0xfc00, 0x7e12, 0x0001, 0x8001, 0, 0x3c00, 0}));
}

TEST(TcaBme, EveryFp16PatternSurvives) {
  ThreadPool pool(2);
  std::vector<Half> data(65536);
  for (size_t i = 0; i < data.size(); ++i) data[i].bits = uint16_t(i * 40503u);  // odd factor: a permutation
  const DenseMatrix dense = make_matrix(256, 256, data);
  const TcaBmeMatrix packed = encode(dense, pool);
  EXPECT_EQ(packed.view().nonzeros, 65534);
  EXPECT_EQ(decoded_bits(packed.view(), pool), canonical_bits(dense));
}

TEST(TcaBme, ThreadsDoNotChangeTheBytes) {
  const DenseMatrix dense = random_matrix(333, 517, 0.45, 17);
  ThreadPool one(1);
  const TcaBmeMatrix reference = encode(dense, one);
  for (int threads : {2, 3}) {
    ThreadPool pool(threads);
    const TcaBmeMatrix packed = encode(dense, pool);
    expect_same(reference.view(), packed.view());
    EXPECT_EQ(decoded_bits(packed.view(), pool), canonical_bits(dense));
  }
}

TEST(TcaBme, ReportsProgressInOrderUpToAllWeights) {
  ThreadPool pool(3);
  const DenseMatrix dense = random_matrix(300, 70, 0.5, 1);
  int64_t last = 0;
  encode(dense, pool, [&](int64_t done, int64_t total) {
    EXPECT_EQ(total, 300 * 70);
    EXPECT_GE(done, last);
    last = done;
  });
  EXPECT_EQ(last, 300 * 70);
}

TEST(TcaBme, EmptyMatrixHasNoTiles) {
  ThreadPool pool(2);
  const TcaBmeMatrix packed = encode({0, 64, nullptr, nullptr}, pool);
  EXPECT_EQ(packed.view().tiles(), 0);
  EXPECT_EQ(packed.view().offset(0), 0);
  EXPECT_EQ(packed.view().nonzeros, 0);
}

TEST(TcaBme, SizeFormulaTakesWideOffsetsFrom32BitsOn) {
  const int64_t m = int64_t{1} << 17, k = int64_t{1} << 16, tiles = (m / 64) * (k / 64);
  const int64_t limit = int64_t{1} << 32;
  EXPECT_EQ(tca_bme_bytes(m, k, limit - 1), 4 * (tiles + 1) + 8 * 64 * tiles + 2 * (limit - 1));
  EXPECT_EQ(tca_bme_bytes(m, k, limit), 8 * (tiles + 1) + 8 * 64 * tiles + 2 * limit);
  EXPECT_EQ(tca_bme_bytes(50272, 4096, 0), tca_bme_bytes(50304, 4096, 0));  // padded to 64
}

TEST(TcaBme, CompressionIsThePapersAtItsSparsities) {
  const std::pair<double, double> expected[] = {
      {0.3, 1.31}, {0.4, 1.50}, {0.5, 1.77}, {0.6, 2.15}, {0.7, 2.74}};
  for (auto [sparsity, ratio] : expected) {
    const int64_t weights = int64_t{4096} * 4096;
    const auto bytes = double(tca_bme_bytes(4096, 4096, int64_t((1 - sparsity) * double(weights))));
    EXPECT_NEAR(2.0 * double(weights) / bytes, ratio, 0.02);
  }
}

TEST(TcaBme, WideOffsetsTakeTheSamePaths) {
  ThreadPool pool(2);
  const DenseMatrix dense = random_matrix(200, 190, 0.5, 9);
  const TcaBmeMatrix wide = format::encode(dense, pool, {}, format::OffsetWidth::bits64);
  const TcaBmeMatrix narrow = encode(dense, pool);
  ASSERT_NE(wide.view().offsets64, nullptr);
  ASSERT_EQ(wide.view().offsets32, nullptr);
  ASSERT_EQ(narrow.view().offsets64, nullptr);
  expect_same(wide.view(), narrow.view());
  EXPECT_NO_THROW(validate_all(wide.view()));
  EXPECT_EQ(decoded_bits(wide.view(), pool), canonical_bits(dense));
  expect_same(slice_rows(wide, 64, 200).view(), slice_rows(narrow, 64, 200).view());
  expect_same(slice_cols(wide, 64, 190, pool).view(), slice_cols(narrow, 64, 190, pool).view());
}

TEST(TcaBme, SlicesAreTheEncodedSlices) {
  ThreadPool pool(2);
  for (auto [m, k] : {std::pair<int64_t, int64_t>{200, 150}, {192, 256}, {65, 64}}) {
    const DenseMatrix dense = random_matrix(m, k, 0.4, uint64_t(m + k));
    const TcaBmeMatrix packed = encode(dense, pool);
    for (int64_t begin = 0; begin <= m; begin += 64) {
      for (int64_t end : {std::min(begin + 64, m), std::min(begin + 128, m), m}) {
        const TcaBmeMatrix slice = slice_rows(packed, begin, end);
        expect_same(slice.view(), encode(part_of(dense, begin, end - begin, 0, k), pool).view());
      }
    }
    for (int64_t begin = 0; begin <= k; begin += 64) {
      for (int64_t end : {std::min(begin + 64, k), std::min(begin + 128, k), k}) {
        const TcaBmeMatrix slice = slice_cols(packed, begin, end, pool);
        expect_same(slice.view(), encode(part_of(dense, 0, m, begin, end - begin), pool).view());
      }
    }
  }
}

TEST(TcaBme, SlicesOutliveTheMatrix) {
  ThreadPool pool(1);
  const DenseMatrix dense = random_matrix(128, 128, 0.5, 2);
  TcaBmeMatrix rows, cols;
  {
    const TcaBmeMatrix packed = encode(dense, pool);
    rows = slice_rows(packed, 64, 128);
    cols = slice_cols(packed, 64, 128, pool);
  }
  EXPECT_EQ(decoded_bits(rows.view(), pool), canonical_bits(part_of(dense, 64, 64, 0, 128)));
  EXPECT_EQ(decoded_bits(cols.view(), pool), canonical_bits(part_of(dense, 0, 128, 64, 64)));
}

TEST(TcaBme, SlicesOutsideTileBordersAreRefused) {
  ThreadPool pool(1);
  const TcaBmeMatrix packed = encode(random_matrix(200, 150, 0.5, 4), pool);
  const std::pair<int64_t, int64_t> bad[] = {{1, 64},  {0, 63},    {64, 0},   {-64, 64},
                                             {0, 256}, {192, 199}, {201, 201}};
  for (auto [begin, end] : bad) {
    EXPECT_THROW(slice_rows(packed, begin, end), Error) << begin << " " << end;
    EXPECT_THROW(slice_cols(packed, begin, end, pool), Error) << begin << " " << end;
  }
}

TEST(TcaBme, StackRowsWithAndWithoutReencoding) {
  ThreadPool pool(2);
  const std::vector<std::vector<int64_t>> cases = {{64, 128, 50}, {128},        {70},
                                                   {50, 64, 13},  {64, 65, 64}, {1, 1, 1}};
  for (const auto& heights : cases) {
    const int64_t m = std::accumulate(heights.begin(), heights.end(), int64_t{0});
    const DenseMatrix dense = random_matrix(m, 100, 0.5, uint64_t(m));
    std::vector<TcaBmeMatrix> parts;
    int64_t row = 0;
    for (int64_t height : heights) {
      parts.push_back(encode(part_of(dense, row, height, 0, 100), pool));
      row += height;
    }
    expect_same(stack_rows(parts, pool).view(), encode(dense, pool).view());
  }
}

TEST(TcaBme, StackRowsRefusesDifferentWidths) {
  ThreadPool pool(1);
  const std::vector<TcaBmeMatrix> parts = {encode(random_matrix(64, 64, 0.5, 1), pool),
                                           encode(random_matrix(64, 65, 0.5, 1), pool)};
  EXPECT_THROW(stack_rows(parts, pool), Error);
  EXPECT_THROW(stack_rows({}, pool), Error);
}

// --- validate
// ---------------------------------------------------------------------------------------------------

/// A matrix as a file would hold it, to be damaged.
struct FileArrays {
  int64_t m = 100, k = 70, nonzeros = 0;
  std::vector<uint64_t> bitmaps;
  std::vector<Half> values;
  std::vector<uint32_t> offsets32;
  std::vector<uint64_t> offsets64;
  size_t bitmap_count, value_count, offset_count;

  FileArrays() {
    ThreadPool pool(1);
    const TcaBmeMatrix packed = encode(random_matrix(m, k, 0.5, 8), pool);
    const TcaBmeView& w = packed.view();
    nonzeros = w.nonzeros;
    bitmaps.assign(w.bitmaps, w.bitmaps + w.tiles() * 64);
    values.assign(w.values, w.values + w.nonzeros);
    offsets32.assign(w.offsets32, w.offsets32 + w.tiles() + 1);
    bitmap_count = bitmaps.size();
    value_count = values.size();
    offset_count = offsets32.size();
  }
  void check_it() const {
    const TcaBmeView w{m,
                       k,
                       nonzeros,
                       bitmaps.data(),
                       values.data(),
                       offsets32.empty() ? nullptr : offsets32.data(),
                       offsets64.empty() ? nullptr : offsets64.data()};
    validate(w, bitmap_count, value_count, offset_count, "layer.weight");
  }
};

struct Damage {
  const char* what;
  std::function<void(FileArrays&)> apply;
  const char* message;  // part of it
};

TEST(TcaBmeValidate, RejectsEachKindOfDamage) {
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  const Damage damages[] = {
      {"no rows", [](FileArrays& f) { f.m = 0; }, "0 rows"},
      {"negative rows", [](FileArrays& f) { f.m = -64; }, "-64 rows"},
      {"huge rows", [](FileArrays& f) { f.m = kHuge; }, "rows, must be"},
      {"no columns", [](FileArrays& f) { f.k = 0; }, "0 columns"},
      {"huge columns", [](FileArrays& f) { f.k = kHuge; }, "columns, must be"},
      {"rows and columns at the cap", [](FileArrays& f) { f.m = f.k = kMaxDimension; }, "bitmaps"},
      {"negative nonzeros", [](FileArrays& f) { f.nonzeros = -1; }, "nonzeros"},
      {"more nonzeros than weights", [](FileArrays& f) { f.nonzeros = 7001; }, "nonzeros"},
      {"another number of rows", [](FileArrays& f) { f.m = 129; }, "bitmaps"},
      {"one bitmap fewer", [](FileArrays& f) { --f.bitmap_count; }, "bitmaps"},
      {"one bitmap more", [](FileArrays& f) { ++f.bitmap_count; }, "bitmaps"},
      {"no bitmaps", [](FileArrays& f) { f.bitmap_count = 0; }, "bitmaps"},
      {"one value fewer", [](FileArrays& f) { --f.value_count; }, "values"},
      {"one value more", [](FileArrays& f) { ++f.value_count; }, "values"},
      {"one offset fewer", [](FileArrays& f) { --f.offset_count; }, "offsets"},
      {"one offset more", [](FileArrays& f) { ++f.offset_count; }, "offsets"},
      {"both widths", [](FileArrays& f) { f.offsets64.assign(f.offsets32.begin(), f.offsets32.end()); },
       "one of the two"},
      {"no offsets", [](FileArrays& f) { f.offsets32.clear(); }, "one of the two"},
      {"first offset", [](FileArrays& f) { f.offsets32[0] = 1; }, "first offset"},
      {"middle offset", [](FileArrays& f) { ++f.offsets32[2]; }, "offset 2"},
      {"absurd offset", [](FileArrays& f) { f.offsets32[1] = 0xffffffffu; }, "offset 1"},
      {"last offset", [](FileArrays& f) { --f.offsets32.back(); }, "offset 4"},
      {"decreasing offsets", [](FileArrays& f) { std::swap(f.offsets32[1], f.offsets32[3]); }, "offset 1"},
      {"a bit lost", [](FileArrays& f) { f.bitmaps[0] &= f.bitmaps[0] - 1; }, "offset 1"},
      {"a bit more", [](FileArrays& f) { f.bitmaps[64] |= f.bitmaps[64] + 1; }, "offset 2"},
      {"nonzeros differ from the bitmaps",
       [](FileArrays& f) {
         ++f.nonzeros;
         ++f.value_count;
         f.values.push_back({});
       },
       "bits"},
      {"a bit in the right padding",
       [](FileArrays& f) {
         f.bitmaps[64 + size_t(bit_of({0, 6}).bitmap)] |= uint64_t{1} << bit_of({0, 6}).bit;
         for (size_t t = 2; t < 5; ++t) ++f.offsets32[t];
         ++f.nonzeros;
         ++f.value_count;
         f.values.push_back({});
       },
       "padding"},
      {"a bit in the padding below",
       [](FileArrays& f) {
         f.bitmaps[128 + size_t(bit_of({36, 0}).bitmap)] |= uint64_t{1} << bit_of({36, 0}).bit;
         for (size_t t = 3; t < 5; ++t) ++f.offsets32[t];
         ++f.nonzeros;
         ++f.value_count;
         f.values.push_back({});
       },
       "padding"},
  };
  EXPECT_NO_THROW(FileArrays().check_it());
  for (const Damage& damage : damages) {
    SCOPED_TRACE(damage.what);
    FileArrays file;
    damage.apply(file);
    try {
      file.check_it();
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      const std::string message = error.what();
      EXPECT_TRUE(message.starts_with("layer.weight: ")) << message;
      EXPECT_NE(message.find(damage.message), std::string::npos) << message;
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    }
  }
}

TEST(TcaBmeValidate, RejectsNarrowOffsetsForTooManyNonzeros) {
  // 2^33 weights claimed; refused before anything is read, so no arrays are needed.
  const uint32_t offset = 0;
  const uint64_t bitmap = 0;
  const Half value{};
  const TcaBmeView w{int64_t{1} << 17, int64_t{1} << 16, int64_t{1} << 32, &bitmap, &value, &offset, nullptr};
  EXPECT_THROW(validate_all(w), Error);
}

TEST(TcaBmeValidate, RejectsMisalignedArrays) {
  const FileArrays file;
  std::vector<uint64_t> shifted(file.bitmaps.size() + 1);
  auto* bytes = reinterpret_cast<unsigned char*>(shifted.data()) + 2;
  std::memcpy(bytes, file.bitmaps.data(), file.bitmaps.size() * 8);
  TcaBmeView w{file.m, file.k, file.nonzeros, nullptr, file.values.data(), file.offsets32.data(), nullptr};
  std::memcpy(&w.bitmaps, &bytes, sizeof(bytes));
  EXPECT_THROW(validate(w, file.bitmap_count, file.value_count, file.offset_count, "w"), Error);
}

}  // namespace
}  // namespace spinfer
