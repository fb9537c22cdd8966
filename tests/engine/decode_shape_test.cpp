#include "engine/decode_shape.h"

#include <gtest/gtest.h>

namespace spinfer {
namespace {

constexpr int kBlockSize = 16;

Batch decode_batch(int sequences, int context) {
  Batch batch;
  batch.query_start.push_back(0);
  batch.max_blocks = (context + kBlockSize - 1) / kBlockSize;
  for (int i = 0; i < sequences; ++i) {
    batch.token_ids.push_back(100 + i);
    batch.positions.push_back(context - 1);
    batch.slots.push_back(i);
    batch.query_start.push_back(i + 1);
    batch.context_len.push_back(context);
    batch.logit_rows.push_back(i);
    batch.sample_ids.push_back(RequestId(i));
    batch.sample_rows.push_back({});
    for (int b = 0; b < batch.max_blocks; ++b) batch.block_table.push_back(1000 * i + b);
  }
  batch.max_query_len = 1;
  batch.max_context_len = context;
  return batch;
}

TEST(DecodeShape, IsOfDecodeStepsAlone) {
  Batch batch = decode_batch(3, 20);
  EXPECT_TRUE(is_decode(batch));
  batch.max_query_len = 2;
  EXPECT_FALSE(is_decode(batch));
  batch = decode_batch(3, 20);
  batch.sample_rows.pop_back();
  EXPECT_FALSE(is_decode(batch));
  batch = decode_batch(3, 20);
  batch.scores.push_back({1, 1});
  EXPECT_FALSE(is_decode(batch));
  EXPECT_FALSE(is_decode(Batch{}));
}

TEST(DecodeShape, ClimbsALadder) {
  const auto shape = [](int sequences, int context) {
    return decode_shape(decode_batch(sequences, context), kBlockSize, 256, 1000);
  };
  EXPECT_EQ(shape(1, 1), (DecodeShape{1, 16}));
  EXPECT_EQ(shape(3, 256), (DecodeShape{4, 16}));
  EXPECT_EQ(shape(9, 257), (DecodeShape{16, 32}));
  EXPECT_EQ(shape(33, 513), (DecodeShape{40, 64}));
  EXPECT_EQ(shape(65, 1025), (DecodeShape{80, 128}));
}

TEST(DecodeShape, StaysWithinTheLimits) {
  EXPECT_EQ(decode_shape(decode_batch(9, 300), kBlockSize, 10, 20), (DecodeShape{10, 20}));
}

TEST(DecodeShape, PaddingKeepsTheStepAndAddsHarmlessRows) {
  const Batch batch = decode_batch(3, 20), out = padded(batch, {8, 16}, kBlockSize);
  EXPECT_EQ(out.tokens(), 8);
  EXPECT_EQ(out.sequences(), 8);
  EXPECT_EQ(out.query_start, (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(out.logit_rows, (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(out.sample_ids, batch.sample_ids);
  EXPECT_EQ(out.max_context_len, 256);
  ASSERT_EQ(out.block_table.size(), 8u * 16);
  for (int row = 0; row < 8; ++row) {
    SCOPED_TRACE(row);
    EXPECT_EQ(out.slots[size_t(row)], row < 3 ? row : -1);
    EXPECT_EQ(out.context_len[size_t(row)], row < 3 ? 20 : 1);
    EXPECT_EQ(out.token_ids[size_t(row)], row < 3 ? 100 + row : 0);
    for (int b = 0; b < 16; ++b)
      EXPECT_EQ(out.block_table[size_t(row) * 16 + size_t(b)], row < 3 && b < 2 ? 1000 * row + b : 0);
  }
}

}  // namespace
}  // namespace spinfer
