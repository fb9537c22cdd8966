#include "kernels/cuda/spmm_plan.h"

#include <gtest/gtest.h>

#include <tuple>

#include "kernels/check.h"
#include "kernels/cuda/context.h"

namespace spinfer::cuda {
namespace {

const GpuFacts kH200{};

class LayoutPlan : public testing::TestWithParam<std::tuple<int64_t, int64_t>> {};

TEST_P(LayoutPlan, IsALegalCutAtEveryDensity) {
  const auto [m, k] = GetParam();
  for (double density : {0.0, 0.05, 0.3, 0.4, 0.5, 0.6, 0.95, 1.0}) {
    const StripShape shape{m, k, plan_strip_chunks(m, k, density, kH200)};
    EXPECT_GE(shape.chunks, 1);
    EXPECT_LE(shape.chunks, shape.blocks());
    EXPECT_LE(shape.max_chunk_blocks(), kMaxChunkBlocks);
    int blocks = 0;
    for (int c = 0; c < shape.chunks; ++c) {
      EXPECT_GE(shape.chunk_blocks(c), 1);
      EXPECT_EQ(shape.record_begin(c), c * 144 + blocks * 256);
      blocks += shape.chunk_blocks(c);
    }
    EXPECT_EQ(blocks, shape.blocks());
  }
}

TEST_P(LayoutPlan, RefinesDownToChunksOfOneBlock) {
  const auto [m, k] = GetParam();
  StripShape shape{m, k, plan_strip_chunks(m, k, 0.3, kH200)};
  for (int steps = 0; shape.chunks < shape.blocks(); ++steps) {
    ASSERT_LT(steps, 8);
    const int chunks = refine_strip_chunks(shape);
    EXPECT_GT(chunks, shape.chunks);
    shape.chunks = chunks;
  }
  EXPECT_THROW(refine_strip_chunks(shape), Error);
  for (int n : {1, 8, 9, 16, 17, 32, 33, 64, 65, kStreamMaxTokens}) {
    const SpmmPlan plan = plan_spmm(shape, n, kH200);
    EXPECT_GE(plan.n_tile, n);
    EXPECT_GE(plan.teams * kSpmmWarps, shape.strips());
    EXPECT_GE(plan.grid, 1);
    EXPECT_LE(plan.grid, kH200.sm_count);
    EXPECT_LE(plan.grid, plan.units);
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, LayoutPlan,
                         testing::Values(std::tuple(16, 16), std::tuple(1, 1), std::tuple(64, 50272),
                                         std::tuple(50272, 64), std::tuple(4096, 4096),
                                         std::tuple(5120, 5120), std::tuple(28672, 8192),
                                         std::tuple(8192, 28672), std::tuple(131, 7001),
                                         std::tuple(152064, 8192)));

TEST(LayoutPlanBytes, ChunksAreLongEnoughForFourPercent) {
  for (const auto& [m, k] :
       {std::pair(4096, 4096), {5120, 5120}, {22016, 4096}, {28672, 8192}, {8192, 28672}}) {
    for (double density : {0.3, 0.4, 0.5, 0.6}) {
      const StripShape shape{m, k, plan_strip_chunks(m, k, density, kH200)};
      EXPECT_GE(double(shape.blocks()) / shape.chunks, density > 0.35 ? 4 : 6)
          << m << "×" << k << " " << density;
    }
  }
}

TEST(LayoutPlanSplit, BlocksHaveAboutTheSameWork) {
  for (const auto& [m, k] :
       {std::pair(4096, 4096), {5120, 5120}, {13824, 5120}, {12288, 12288}, {8192, 28672}}) {
    const StripShape shape{m, k, plan_strip_chunks(m, k, 0.5, kH200)};
    const SpmmPlan plan = plan_spmm(shape, 8, kH200);
    const auto most = double((plan.units + plan.grid - 1) / plan.grid) * shape.blocks() / shape.chunks;
    // 5120×5120: a tenth longer, and no team ends inside a run
    const double longer = m == 5120 ? 1.11 : 1.06;
    EXPECT_LT(most, longer * double(plan.teams) * shape.blocks() / kH200.sm_count) << m << "×" << k;
  }
}

/// 16 teams of 64 blocks of columns each for 132 thread blocks: eight are the least.
TEST(LayoutPlanSplit, CutsSmallMatricesForTheirLongestRun) {
  for (double density : {0.3, 0.4, 0.5}) {
    const StripShape shape{4096, 4096, plan_strip_chunks(4096, 4096, density, kH200)};
    const SpmmPlan plan = plan_spmm(shape, 8, kH200);
    EXPECT_LE((plan.units + plan.grid - 1) / plan.grid * shape.max_chunk_blocks(), 8) << density;
  }
}

/// By the mean length of a chunk 17 would be best; but then the longest run is longer.
TEST(LayoutPlanSplit, CountsTheBlocksOfTheLongestRun) {
  EXPECT_EQ(plan_strip_chunks(13824, 5120, 0.5, kH200), 14);
}

/// Runs of two chunks: with thirteen chunks to a team they are shorter, but teams end inside them.
TEST(LayoutPlanSplit, CountsTeamsThatEndInsideRuns) {
  EXPECT_EQ(plan_strip_chunks(5120, 5120, 0.4, kH200), 12);
}

/// Eleven chunks make runs of four each, thirteen of five and, for the blocks that start last, four.
TEST(LayoutPlanSplit, LeavesLateBlocksLess) {
  EXPECT_EQ(plan_strip_chunks(12288, 4096, 0.4, kH200), 13);
}

TEST(SpmmPlan, TheSplitDoesNotDependOnTheTokens) {
  const StripShape shape{12288, 12288, 39};
  const SpmmPlan one = plan_spmm(shape, 1, kH200);
  for (int n : {8, 17, 64, 65, 96}) {
    const SpmmPlan plan = plan_spmm(shape, n, kH200);
    EXPECT_EQ(plan.grid, one.grid);
    EXPECT_EQ(plan.units, one.units);
    EXPECT_EQ(plan.teams, one.teams);
  }
}

TEST(SpmmPlan, TheTileIsTheNextThatThereIs) {
  const StripShape shape{4096, 4096, 8};
  for (const auto& [n, tile] :
       {std::pair(1, 8), {8, 8}, {9, 16}, {17, 32}, {33, 64}, {64, 64}, {65, 96}, {96, 96}})
    EXPECT_EQ(plan_spmm(shape, n, kH200).n_tile, tile) << n;
}

TEST(SpmmPlan, Prints) {
  EXPECT_EQ(plan_spmm({4096, 4096, 8}, 8, kH200).to_string(), "stream n_tile 8 teams 16 units 128 grid 128");
}

}  // namespace
}  // namespace spinfer::cuda
