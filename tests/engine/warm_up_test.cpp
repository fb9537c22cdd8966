#include "engine/warm_up.h"

#include <gtest/gtest.h>

#include <set>

#include "engine/decode_shape.h"
#include "kernels/token_bucket.h"

namespace spinfer {
namespace {

constexpr int kBlockSize = 16;

StepLimits limits_of(int tokens, int seqs, int64_t max_model_len) {
  return {tokens, seqs, std::max(tokens, seqs), (max_model_len + kBlockSize - 1) / kBlockSize};
}

TEST(WarmUp, CoversEveryDecodeShapeAndBucketWithinTheLimits) {
  for (const auto& [tokens, seqs, length] :
       {std::tuple{2048, 256, int64_t{4096}}, {8192, 100, 4096}, {100, 100, 50}, {1, 1, 1}, {7, 3, 2048}}) {
    const StepLimits limits = limits_of(tokens, seqs, length);
    std::set<DecodeShape> shapes;
    std::set<int> token_buckets, logit_buckets;
    for (const WarmUpStep& step : warm_up_steps(limits, length, kBlockSize)) {
      const Batch batch = warm_up_batch(step, kBlockSize);
      ASSERT_LE(batch.tokens(), tokens);
      ASSERT_LE(batch.sequences(), seqs);
      ASSERT_LE(batch.max_context_len, length);
      ASSERT_LE(batch.max_blocks, limits.max_blocks);
      if (is_decode(batch)) shapes.insert(decode_shape(batch, kBlockSize, seqs, limits.max_blocks));
      token_buckets.insert(token_bucket(batch.tokens()));
      logit_buckets.insert(token_bucket(int(batch.logit_rows.size())));
    }
    for (int s = 1; s <= seqs; ++s) {
      EXPECT_TRUE(logit_buckets.contains(token_bucket(s))) << s;
      for (int64_t context = 1; context <= length; ++context) {
        Batch batch = warm_up_batch({s, 1, context}, kBlockSize);
        ASSERT_TRUE(shapes.contains(decode_shape(batch, kBlockSize, seqs, limits.max_blocks)))
            << s << " sequences, context " << context;
        if (s > 2) context += 15;
      }
    }
    for (int n = 1; n <= tokens; ++n)
      EXPECT_TRUE(token_buckets.contains(token_bucket(n))) << n << " of " << tokens << " tokens";
  }
}

TEST(WarmUp, StoresNothing) {
  const Batch batch = warm_up_batch({3, 5, 9}, kBlockSize);
  EXPECT_EQ(batch.slots, std::vector<int32_t>(15, -1));
  EXPECT_EQ(batch.positions.back(), 4);
  EXPECT_EQ(batch.context_len, std::vector<int32_t>(3, 5));
  EXPECT_EQ(batch.max_context_len, 9);
  EXPECT_EQ(batch.query_start, (std::vector<int32_t>{0, 5, 10, 15}));
  EXPECT_EQ(batch.block_table, std::vector<int32_t>(3, 0));
}

}  // namespace
}  // namespace spinfer
