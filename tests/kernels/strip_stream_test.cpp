#include "kernels/format/strip_stream.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <tuple>

#include "kernels/check.h"
#include "kernels/thread_pool.h"
#include "random_matrix.h"

namespace spinfer {
namespace {

using test::make_matrix;
using test::random_matrix;

/// Encodes, cuts into `chunks`, more of them while too uneven for the ring, decodes with the device's
/// arithmetic and compares bit for bit.
void expect_round_trip(const DenseMatrix& dense, int chunks, bool paired = false) {
  ThreadPool pool(2);
  const TcaBmeMatrix packed = encode(dense, pool);
  StripStreamHost stream = make_strip_stream(packed.view(), chunks, paired);
  while (!stream.fits_ring) {
    ASSERT_LT(stream.shape.chunks, stream.shape.blocks()) << "chunks of one block must fit";
    stream =
        make_strip_stream(packed.view(), std::min(2 * stream.shape.chunks, stream.shape.blocks()), paired);
  }
  const std::vector<Half> decoded = decode_strip_stream(stream.view());
  ASSERT_EQ(int64_t(decoded.size()), dense.m * dense.k);
  for (int64_t i = 0; i < dense.m * dense.k; ++i) {
    ASSERT_EQ(decoded[size_t(i)], is_zero(dense.data[i]) ? Half{} : dense.data[i])
        << "row " << i / dense.k << " column " << i % dense.k;
  }
}

class StripStreamSizes : public testing::TestWithParam<std::tuple<int, int, int>> {};

TEST_P(StripStreamSizes, RoundTripsAtEverySparsity) {
  const auto [m, k, chunks] = GetParam();
  for (const double density : {0.0, 0.05, 0.3, 0.5, 0.6, 0.95, 1.0}) {
    expect_round_trip(random_matrix(m, k, density, uint64_t(m * k) + uint64_t(density * 100)), chunks);
  }
}

INSTANTIATE_TEST_SUITE_P(OddAndEven, StripStreamSizes,
                         testing::Values(std::tuple(16, 16, 1), std::tuple(1, 1, 1), std::tuple(64, 64, 1),
                                         std::tuple(17, 131, 1), std::tuple(17, 131, 2),
                                         std::tuple(17, 131, 3), std::tuple(80, 960, 2),
                                         std::tuple(130, 700, 3), std::tuple(65, 1999, 7)));

TEST(StripStream, KeepsNanInfinityAndEveryBitPattern) {
  std::vector<Half> data(256 * 256);
  for (size_t i = 0; i < data.size(); ++i) data[i].bits = uint16_t(i * 40503u);
  expect_round_trip(make_matrix(256, 256, std::move(data)), 2);
}

TEST(StripStream, UnevenMasks) {
  const int64_t m = 96, k = 640;
  const auto matrix_of = [&](auto keep) {
    const DenseMatrix full = random_matrix(m, k, 1.0, 3);
    std::vector<Half> data(full.data, full.data + m * k);
    for (int64_t i = 0; i < m * k; ++i) {
      if (!keep(i / k, i % k)) data[size_t(i)] = {};
    }
    return make_matrix(m, k, std::move(data));
  };
  expect_round_trip(matrix_of([](int64_t row, int64_t) { return row == 37; }), 2);
  expect_round_trip(matrix_of([](int64_t row, int64_t col) { return row / 64 == 1 && col / 64 == 4; }), 2);
  expect_round_trip(matrix_of([](int64_t row, int64_t) { return row / 16 != 2; }), 2);
  // all nonzeros in the columns of one lane of each quad, and of one lane
  expect_round_trip(matrix_of([](int64_t, int64_t col) { return col % 8 / 2 == 3; }), 2);
  expect_round_trip(matrix_of([](int64_t row, int64_t col) { return row % 8 == 5 && col % 8 / 2 == 1; }), 2);
}

TEST(StripStream, FullNibblesNeverBeginAtAnOddHalf) {
  // one nonzero, then full nibbles: the first nibble is given a zero in its lowest free bit
  EXPECT_EQ(mask_with_zeros(0, 0x000000f1u, 0), 0x000000f3u);
  EXPECT_EQ(mask_with_zeros(1, 0x000000f1u, 0), 0x000000f1u);
  EXPECT_EQ(mask_with_zeros(0, 0x000000f7u, 0), 0x000000ffu);
  EXPECT_EQ(mask_with_zeros(0, 0x00000f01u, 0), 0x00000f11u);  // by the empty nibble in between
  EXPECT_EQ(mask_with_zeros(0, 0xffffffffu, 0xfu), 0xffffffffu);
  EXPECT_EQ(mask_with_zeros(0, 0x10000000u, 0xfu), 0x30000000u);  // for the next block's sake
  for (uint32_t seed = 1; seed < 2000; ++seed) {
    const uint32_t mask = seed * 2654435761u | seed << 20, next = seed * 40503u;
    const uint32_t padded = mask_with_zeros(0, mask, next);
    ASSERT_EQ(padded & mask, mask);
    int half = 0;
    for (int j = 0; j <= kNibblesPerBlock; ++j) {
      const uint32_t nibble = j < kNibblesPerBlock ? padded >> (4 * j) & 15u : next & 15u;
      if (nibble == 15u && j > 0) {
        ASSERT_EQ(half % 2, 0) << std::hex << mask << " nibble " << j;
      }
      half += std::popcount(nibble);
    }
  }
}

TEST(StripStream, EntriesPickWhatTheNibbleHas) {
  for (uint32_t nibble = 0; nibble < 16; ++nibble) {
    const NibbleEntry entry = nibble_entry(nibble);
    int count = 0;
    for (int i = 0; i < 4; ++i) {
      const uint32_t selectors = (i < 2 ? entry.first : entry.second) >> (8 * (i % 2)) & 255u;
      const bool set = nibble >> i & 1;
      EXPECT_EQ(selectors, set ? uint32_t((2 * count + 1) << 4 | 2 * count) : 0x77u) << nibble << " " << i;
      count += set;
    }
    EXPECT_EQ(entry.first >> 16, nibble == 15 ? 0xffffu : 0u) << "byte 7 is a zero but in a full nibble";
    EXPECT_EQ(entry.second >> 16, uint32_t(16 * count)) << nibble;
  }
}

TEST(StripStream, StoredMasksComeApartByHalves) {
  for (int t = 0; t < 4; ++t) {
    for (int i = 0; i < 4; ++i) {
      const uint32_t word = arrange_mask(2u << (8 * t + 2 * i)), nibble = 2u << (2 * (i % 2));
      EXPECT_EQ(mask_nibbles(word, t / 2), nibble << (16 * (t % 2) + 8 * (i / 2)));
      EXPECT_EQ(mask_nibbles(word, 1 - t / 2), 0u);
    }
  }
  EXPECT_EQ(arrange_mask(0xffffffffu), 0xffffffffu);
}

TEST(StripStream, RejectsIllegalCuts) {
  ThreadPool pool(1);
  const TcaBmeMatrix packed = encode(random_matrix(64, 2048, 0.5, 1), pool);
  EXPECT_THROW(make_strip_stream(packed.view(), 0), Error);
  EXPECT_THROW(make_strip_stream(packed.view(), 3), Error);  // 11 blocks a chunk
  EXPECT_NO_THROW(make_strip_stream(packed.view(), 4));
  EXPECT_THROW(make_strip_stream(packed.view(), 33), Error);
}

class PairedStripStream : public testing::TestWithParam<std::tuple<int, int, int>> {};

TEST_P(PairedStripStream, RoundTripsAtEverySparsity) {
  const auto [m, k, chunks] = GetParam();
  for (const double density : {0.0, 0.05, 0.5, 0.95, 1.0})
    expect_round_trip(random_matrix(m, k, density, uint64_t(m * k) + uint64_t(density * 100)), chunks, true);
}

/// The same bytes as the unpaired layout of the matrix whose rows are already in the tiers' order.
TEST_P(PairedStripStream, HasTheRowsOfBothHalves) {
  const auto [m, k, chunks] = GetParam();
  const DenseMatrix dense = random_matrix(m, k, 0.5, uint64_t(m + k));
  std::vector<Half> ordered;
  for (int64_t strip = 0; strip < m / kStripRows; ++strip) {
    for (const int64_t top : {strip * 16, m / 2 + strip * 16})
      ordered.insert(ordered.end(), dense.data + top * k, dense.data + (top + 16) * k);
  }
  ThreadPool pool(2);
  const StripStreamHost paired = make_strip_stream(encode(dense, pool).view(), chunks, true);
  const StripStreamHost plain =
      make_strip_stream(encode(make_matrix(m, k, std::move(ordered)), pool).view(), chunks);
  EXPECT_TRUE(paired.shape.paired);
  EXPECT_EQ(paired.records, plain.records);
  EXPECT_EQ(paired.values, plain.values);
  EXPECT_EQ(paired.max_chunk_rows, plain.max_chunk_rows);
  ASSERT_EQ(paired.places.size(), plain.places.size());
  for (size_t i = 0; i < plain.places.size(); ++i) {
    EXPECT_EQ(paired.places[i].row, plain.places[i].row);
    EXPECT_EQ(paired.places[i].pieces, plain.places[i].pieces);
  }
}

// 192 and 704 rows: the lower half begins in the middle of a GroupTile.
INSTANTIATE_TEST_SUITE_P(OddAndEven, PairedStripStream,
                         testing::Values(std::tuple(64, 16, 1), std::tuple(64, 131, 2),
                                         std::tuple(128, 700, 3), std::tuple(192, 320, 1),
                                         std::tuple(192, 1999, 7), std::tuple(704, 131, 3)));

TEST(StripStream, UnevenPairs) {
  const int64_t m = 192, k = 640;
  const DenseMatrix full = random_matrix(m, k, 1.0, 4);
  std::vector<Half> lower(full.data, full.data + m * k);
  std::fill_n(lower.begin(), m / 2 * k, Half{});
  expect_round_trip(make_matrix(m, k, std::move(lower)), 2, true);
}

TEST(StripStream, TierRows) {
  const StripShape plain{192, 64, 1}, paired{192, 64, 1, true};
  EXPECT_EQ(plain.strips(), 6);
  EXPECT_EQ(paired.strips(), 6);
  for (int64_t strip = 0; strip < 6; ++strip) {
    EXPECT_EQ(plain.tier_row(strip, 0), 32 * strip);
    EXPECT_EQ(plain.tier_row(strip, 1), 32 * strip + 16);
    EXPECT_EQ(paired.tier_row(strip, 0), 16 * strip);
    EXPECT_EQ(paired.tier_row(strip, 1), 96 + 16 * strip);
  }
}

TEST(StripStream, PairsNeedWholeStripsInBothHalves) {
  ThreadPool pool(1);
  for (const int64_t m : {64, 128, 192, 704}) EXPECT_TRUE(StripShape::can_pair(m)) << m;
  for (const int64_t m : {0, 1, 16, 32, 63, 65, 96, 160, 720}) EXPECT_FALSE(StripShape::can_pair(m)) << m;
  for (const int64_t m : {1, 32, 65, 96}) {
    const TcaBmeMatrix packed = encode(random_matrix(m, 64, 0.5, 1), pool);
    EXPECT_NO_THROW(make_strip_stream(packed.view(), 1));
    EXPECT_THROW(make_strip_stream(packed.view(), 1, true), Error) << m;
  }
}

TEST(StripStream, BytesStayWithinFourPercent) {
  ThreadPool pool(2);
  for (const int64_t k : {4096, 5120, 14336}) {
    for (const auto& [density, chunk_columns] :
         {std::pair(0.6, 320), {0.5, 256}, {0.4, 256}, {0.36, 256}, {0.3, 512}}) {
      const DenseMatrix dense = random_matrix(64, k, density, 9);
      const TcaBmeMatrix packed = encode(dense, pool);
      const StripStreamHost stream =
          make_strip_stream(packed.view(), int(k + chunk_columns - 1) / chunk_columns);
      EXPECT_TRUE(stream.fits_ring);
      const double ratio = double(stream.view().bytes()) / double(packed.view().bytes());
      RecordProperty(fmt::format("ratio_{}_{}", k, density), fmt::format("{:.4f}", ratio));
      EXPECT_LT(ratio, 1.04) << "k " << k << " density " << density;
      EXPECT_GT(ratio, 0.99);
    }
  }
}

TEST(StripStream, SlicesAtStripsNeedNoCopy) {
  ThreadPool pool(2);
  const DenseMatrix dense = random_matrix(128, 512, 0.5, 5);
  const StripStreamHost whole = make_strip_stream(encode(dense, pool).view(), 4);
  // rows 64 … 127: records and places from the third strip on, over the same values
  StripStreamView lower = whole.view();
  lower.shape.m = 64;
  lower.records += 2 * lower.shape.record_bytes();
  lower.places += 2;
  const std::vector<Half> decoded = decode_strip_stream(lower);
  for (int64_t i = 0; i < 64 * 512; ++i) ASSERT_EQ(decoded[size_t(i)], dense.data[64 * 512 + i]);
}

}  // namespace
}  // namespace spinfer
