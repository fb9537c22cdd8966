// Which attention kernels serve a batch, and how decode divides it; no GPU needed.
#include "kernels/cuda/attention.h"

#include <gtest/gtest.h>

namespace spinfer::cuda {
namespace {

AttentionArgs args(int sequences, int n, int max_query_len, int head_dim = 128, int block_size = 16) {
  AttentionArgs a{};
  a.seqs.count = sequences;
  a.seqs.max_query_len = max_query_len;
  a.n = n;
  a.head_dim = head_dim;
  a.block_size = block_size;
  return a;
}

const int kH200 = GpuFacts{}.shared_per_block;

std::string kernels(const AttentionPlan& plan) {
  return std::string(plan.decode ? "decode " : "") + (plan.prefill ? "prefill " : "") +
         (plan.plain ? "plain" : "");
}

TEST(AttentionPlan, ServesEverySequenceByOneKernel) {
  EXPECT_EQ(kernels(plan_attention(args(8, 8, 1), true, false, kH200)), "decode ");
  EXPECT_EQ(kernels(plan_attention(args(1, 100, 100), true, false, kH200)), "prefill ");
  EXPECT_EQ(kernels(plan_attention(args(8, 107, 100), true, false, kH200)), "decode prefill ");
  EXPECT_EQ(kernels(plan_attention(args(8, 107, 100), false, false, kH200)), "plain");
  EXPECT_EQ(kernels(plan_attention(args(8, 107, 100, 192), true, false, kH200)), "decode plain");
  EXPECT_EQ(kernels(plan_attention(args(8, 107, 100, 300), true, false, kH200)), "plain");
  EXPECT_EQ(kernels(plan_attention(args(8, 107, 100, 128, 8), true, false, kH200)), "plain");
  EXPECT_EQ(kernels(plan_attention(args(8, 107, 100, 128, 24), true, false, kH200)), "plain");
}

TEST(AttentionPlan, OneKernelServesAllChunksWhereDeterministic) {
  for (const int max_query_len : {1, 100}) {
    EXPECT_EQ(kernels(plan_attention(args(8, 107, max_query_len), true, true, kH200)), "prefill ");
    EXPECT_EQ(kernels(plan_attention(args(8, 107, max_query_len, 192), true, true, kH200)), "plain");
    EXPECT_EQ(kernels(plan_attention(args(8, 107, max_query_len), false, true, kH200)), "plain");
  }
}

TEST(AttentionPlan, TakesWhatFitsTheSharedMemory) {
  constexpr int kAda = 99 << 10;  // compute capability 8.6, 8.9, 12.0
  EXPECT_EQ(kernels(plan_attention(args(8, 107, 100, 128), true, false, kAda)), "decode plain");
  EXPECT_EQ(kernels(plan_attention(args(8, 107, 100, 96), true, false, kAda)), "decode prefill ");
  EXPECT_EQ(kernels(plan_attention(args(8, 8, 1, 128), true, false, kAda)), "decode ");
  EXPECT_EQ(kernels(plan_attention(args(8, 8, 1, 256), true, false, kAda)), "plain");
  EXPECT_EQ(kernels(plan_attention(args(8, 107, 1, 128), true, true, kAda)), "plain");
  for (int head_dim = 8; head_dim <= 256; head_dim += 8) {
    EXPECT_LE(decode_shared_bytes(head_dim), kH200) << head_dim;
    if (head_dim <= 128) {
      EXPECT_LE(prefill_shared_bytes(head_dim), kH200) << head_dim;
    }
  }
}

TEST(DecodeParts, FillTheGpuWithoutASecondRoundOfShortParts) {
  const GpuFacts h200;
  EXPECT_EQ(decode_parts(h200, 1, 1), 1);
  EXPECT_EQ(decode_parts(h200, 1, 65), 2);
  EXPECT_EQ(decode_parts(h200, 32, 512), 8);
  EXPECT_EQ(decode_parts(h200, 8, 32768), 16);
  EXPECT_EQ(decode_parts(h200, 256, 512), 2);
  EXPECT_EQ(decode_parts(h200, 512, 512), 1);
  EXPECT_EQ(decode_parts(h200, 512, 4096), 2);
  EXPECT_EQ(decode_parts(h200, 1 << 20, 1 << 20), 1);
  GpuFacts a100;
  a100.compute_capability = 80;
  EXPECT_EQ(decode_parts(a100, 1, 1 << 20), 1);  // no clusters
}

}  // namespace
}  // namespace spinfer::cuda
