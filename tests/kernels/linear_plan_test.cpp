#include "kernels/cuda/linear_plan.h"

#include <gtest/gtest.h>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/prefill_tile.h"
#include "kernels/cuda/smbd_tile.h"
#include "kernels/cuda/spmm_plan.h"
#include "kernels/cuda/spmm_prefill.h"
#include "kernels/cuda/spmm_smbd.h"
#include "kernels/token_bucket.h"

namespace spinfer::cuda {
namespace {

GpuFacts gpu(int sm_count, int capability) {
  GpuFacts facts;
  facts.sm_count = sm_count;
  facts.compute_capability = capability;
  return facts;
}

TEST(LinearPlan, EveryProblemHasAKernelThatCanRunIt) {
  for (const GpuFacts& facts : {gpu(132, 90), gpu(108, 80), gpu(84, 86), gpu(128, 89)})
    for (const int64_t m : {16, 17, 64, 4096, 50272})
      for (const int64_t k : {16, 31, 4096, 50272})
        for (const int n : {1, 8, 64, 65, 256, 4096})
          for (const int arrays : {1, 2, 3}) {
            const bool hopper = kBuiltForHopper && facts.compute_capability == 90;
            if (!hopper && arrays != 1) continue;
            LinearProblem problem{m, k, n, false, (arrays & 1) != 0, (arrays & 2) != 0};
            const LinearKernel kernel = choose_linear_kernel(problem, facts);
            EXPECT_TRUE(can_run(kernel, problem, facts))
                << to_string(kernel) << " " << m << "×" << k << " n=" << n << " arrays " << arrays;
            EXPECT_NE(kernel, LinearKernel::dense);
          }
}

TEST(LinearPlan, DenseWeightsStayDense) {
  EXPECT_EQ(choose_linear_kernel({64, 64, 8, true, false, false}, GpuFacts{}), LinearKernel::dense);
}

TEST(LinearPlan, AWeightWithoutArraysIsRefused) {
  EXPECT_THROW(choose_linear_kernel({64, 64, 8, false, false, false}, GpuFacts{}), Error);
}

TEST(SmbdPlan, IsLegalForEveryProblem) {
  for (const int64_t m : {16, 17, 64, 4096, 50272})
    for (const int64_t k : {16, 31, 4096, 50272})
      for (const int n : {1, 3, 8, 17, 31, 64, 100, 257, 4096}) {
        const SmbdPlan plan = plan_smbd(m, k, n, GpuFacts{});
        SCOPED_TRACE(plan.to_string());
        EXPECT_GE(plan.n_tile * plan.n_blocks, n);
        EXPECT_LT(plan.n_tile * (plan.n_blocks - 1), n);
        EXPECT_EQ(plan.row_blocks, group_tiles(m));
        EXPECT_GE(plan.split, 1);
        EXPECT_LE(plan.split, group_tiles(k)) << "a block without work";
        EXPECT_EQ(plan.workspace_bytes, plan.split > 1 ? size_t(plan.split) * size_t(n) * size_t(m) * 4 : 0u);
      }
}

TEST(SmbdPlan, SplitDoesNotDependOnTheBatch) {
  for (const int n : {1, 8, 33, 64, 1000})
    EXPECT_EQ(plan_smbd(5120, 13824, n, GpuFacts{}).split, plan_smbd(5120, 13824, 1, GpuFacts{}).split);
}

TEST(SmbdTile, AFullTileAtAnyAlignmentFits) {
  constexpr int kFull = kGroupTile * kGroupTile;
  for (int misalignment = 0; misalignment < 8; ++misalignment) {
    const int copied = (misalignment + kFull + 7) / 8 * 8;
    EXPECT_LE(size_t(copied) * 2, sizeof(SmbdStage<8>::values));
  }
}

TEST(LinearPlan, ManyTokensGoThroughTheScratch) {
  if (!kBuiltForHopper) GTEST_SKIP() << "built without sm_90a";
  LinearProblem problem{4096, 4096, 8, false, false, true};
  const auto kernel = [&](int n) {
    problem.n = n;
    return choose_linear_kernel(problem, GpuFacts{});
  };
  EXPECT_EQ(kernel(kStreamMaxTokens), LinearKernel::stream);
  EXPECT_EQ(kernel(kStreamMaxTokens + 1), LinearKernel::fused);
  EXPECT_EQ(kernel(1024), LinearKernel::fused);
  EXPECT_EQ(kernel(1025), LinearKernel::scratch);
  EXPECT_EQ(kernel(4096), LinearKernel::scratch);
}

TEST(LinearPlan, CanonicalArraysAloneAreMultipliedBySmbdUpToItsLargestTile) {
  LinearProblem problem{4096, 4096, kDecodeTokens, false, true};
  EXPECT_EQ(choose_linear_kernel(problem, GpuFacts{}), LinearKernel::smbd);
  problem.n = kDecodeTokens + 1;
  EXPECT_EQ(choose_linear_kernel(problem, GpuFacts{}), LinearKernel::scratch);
}

TEST(PrefillPlan, DealsEveryChunkOfEveryTileOnce) {
  for (const int64_t m : {16, 300, 4096, 28672, 50272})
    for (const int64_t k : {16, 4096, 28672, 50272})
      for (const int n : {65, 100, 128, 129, 257, 512, 2048, 4096})
        for (const int chunk_blocks : {1, 5, 6, 8}) {
          const int blocks = StripShape{m, k, 1}.blocks();
          const StripShape shape{m, k, (blocks + chunk_blocks - 1) / chunk_blocks};
          const PrefillPlan plan = plan_prefill(shape, n, GpuFacts{});
          SCOPED_TRACE(plan.to_string());
          EXPECT_GE(int64_t(plan.tiles_m) * prefill_cluster_rows(plan.n_tile), m);
          EXPECT_GE(plan.tiles_n * plan.n_tile, n);
          EXPECT_LT((plan.tiles_n - 1) * plan.n_tile, n);
          EXPECT_EQ(plan.whole_tiles + plan.stream_tiles, plan.tiles_m * plan.tiles_n);
          EXPECT_EQ(plan.whole_tiles % plan.clusters, 0);
          EXPECT_LE(plan.clusters, 66);
          // A cluster without a unit would own no tile's first chunk, but be waited for.
          if (plan.stream_tiles > 0) {
            EXPECT_GE(plan.stream_tiles * shape.chunks, plan.clusters);
          }
          EXPECT_LE(plan.shared_bytes, GpuFacts{}.shared_per_block);
          EXPECT_LE(plan.workspace_bytes, prefill_workspace_bytes(GpuFacts{}));
          EXPECT_LE(plan.clusters * kPrefillClusterBlocks * kPrefillMaxGroups, Context::kFlags);
        }
}

TEST(TokenBucket, CoversItsTokensWithFewBuckets) {
  int buckets = 0, last = 0;
  for (int n = 1; n <= 8192; ++n) {
    const int bucket = token_bucket(n);
    EXPECT_GE(bucket, n);
    EXPECT_LE(bucket, n <= 64 ? (n + 7) / 8 * 8 : n + n / 4);
    EXPECT_GE(bucket, last);
    EXPECT_EQ(token_bucket(bucket), bucket);
    buckets += bucket != last;
    last = bucket;
  }
  EXPECT_LT(buckets, 11 + 32);
}

}  // namespace
}  // namespace spinfer::cuda
