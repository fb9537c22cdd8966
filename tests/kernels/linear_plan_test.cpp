#include "kernels/cuda/linear_plan.h"

#include <gtest/gtest.h>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/dense_linear.h"
#include "kernels/cuda/smbd_tile.h"
#include "kernels/cuda/spmm_smbd.h"

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
          for (const int arrays : {1}) {
            const bool hopper = facts.compute_capability == 90;
            if (!hopper && arrays != 1) continue;
            const LinearProblem problem{m, k, n, false, (arrays & 1) != 0, (arrays & 2) != 0};
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

TEST(DenseBucket, CoversItsTokensWithFewBuckets) {
  int buckets = 0, last = 0;
  for (int n = 1; n <= 8192; ++n) {
    const int bucket = dense_bucket(n);
    EXPECT_GE(bucket, n);
    EXPECT_LE(bucket, n <= 64 ? n : n + n / 4);
    EXPECT_GE(bucket, last);
    EXPECT_EQ(dense_bucket(bucket), bucket);
    buckets += bucket != last;
    last = bucket;
  }
  EXPECT_LT(buckets, 64 + 32);
}

}  // namespace
}  // namespace spinfer::cuda
