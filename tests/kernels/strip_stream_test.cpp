#include "kernels/format/strip_stream.h"

#include <gtest/gtest.h>

#include <tuple>

#include "kernels/check.h"
#include "kernels/thread_pool.h"
#include "random_matrix.h"

namespace spinfer {
namespace {

using test::make_matrix;
using test::random_matrix;

/// Encodes, cuts into `chunks`, decodes with the device's arithmetic and compares bit for bit.
void expect_round_trip(const DenseMatrix& dense, int chunks) {
  ThreadPool pool(2);
  const TcaBmeMatrix packed = encode(dense, pool);
  const StripStreamHost stream = make_strip_stream(packed.view(), chunks);
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
                                         std::tuple(17, 131, 3), std::tuple(80, 960, 1),
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
  expect_round_trip(matrix_of([](int64_t, int64_t col) { return col % 8 / 2 == 3; }), 1);
  expect_round_trip(matrix_of([](int64_t row, int64_t col) { return row % 8 == 5 && col % 8 / 2 == 1; }), 1);
}

TEST(StripStream, FullNibblesAtOddHalvesArePadded) {
  // lane 0: one nonzero, then full nibbles: position 1 → padded to 2 → 6 → …
  EXPECT_EQ(advance_stream(0, 0x000000f1u), 6);
  EXPECT_EQ(advance_stream(0, 0xffffffffu), 32);
  EXPECT_EQ(advance_stream(1, 0x0000000fu), 6);
  EXPECT_EQ(advance_stream(1, 0x000000f7u), 8);
  // a pad follows an odd nibble of at most three, so no stream is longer than a dense one
  for (uint32_t odd : {1u, 7u})
    EXPECT_LE(advance_stream(0, 0xf0f0f0f0u | odd | odd << 8 | odd << 16 | odd << 24), 32);
}

TEST(StripStream, SelectorsPickValuesInOrder) {
  EXPECT_EQ(nibble_selectors(0u), 0x77777777u);
  EXPECT_EQ(nibble_selectors(15u), 0x76543210u);
  EXPECT_EQ(nibble_selectors(2u), 0x77771077u);
  EXPECT_EQ(nibble_selectors(13u), 0x54327710u);
}

TEST(StripStream, RejectsIllegalCuts) {
  ThreadPool pool(1);
  const TcaBmeMatrix packed = encode(random_matrix(64, 2048, 0.5, 1), pool);
  EXPECT_THROW(make_strip_stream(packed.view(), 0), Error);
  EXPECT_THROW(make_strip_stream(packed.view(), 2), Error);  // 16 blocks a chunk
  EXPECT_NO_THROW(make_strip_stream(packed.view(), 3));
  EXPECT_THROW(make_strip_stream(packed.view(), 33), Error);
}

TEST(StripStream, BytesStayWithinFourPercent) {
  ThreadPool pool(2);
  for (const auto& [density, chunk_columns] : {std::pair(0.6, 320), {0.5, 256}, {0.4, 256}, {0.3, 320}}) {
    const DenseMatrix dense = random_matrix(256, 4096, density, 9);
    const TcaBmeMatrix packed = encode(dense, pool);
    const StripStreamHost stream =
        make_strip_stream(packed.view(), (4096 + chunk_columns - 1) / chunk_columns);
    const double ratio = double(stream.view().bytes()) / double(packed.view().bytes());
    RecordProperty(fmt::format("ratio_{}", density), fmt::format("{:.4f}", ratio));
    EXPECT_LT(ratio, 1.04) << "density " << density;
    EXPECT_GT(ratio, 0.99);
  }
}

TEST(StripStream, SlicesAtStripsAndChunksNeedNoCopy) {
  ThreadPool pool(2);
  const DenseMatrix dense = random_matrix(128, 512, 0.5, 5);
  const StripStreamHost whole = make_strip_stream(encode(dense, pool).view(), 4);
  // rows 64 … 127: the directory's second half over the same data
  StripStreamView lower = whole.view();
  lower.shape.m = 64;
  lower.offsets += 4 * 4;
  lower.heights += 4 * 4;
  const std::vector<Half> decoded = decode_strip_stream(lower);
  for (int64_t i = 0; i < 64 * 512; ++i) ASSERT_EQ(decoded[size_t(i)], dense.data[64 * 512 + i]);
}

}  // namespace
}  // namespace spinfer
