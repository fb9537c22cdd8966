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
    const StripLayoutPlan layout = plan_strip_layout(m, k, density, kH200);
    const StripShape shape{m, k, layout.chunks};
    EXPECT_GE(layout.chunks, 1);
    EXPECT_LE(layout.chunks, shape.blocks());
    EXPECT_LE(shape.max_chunk_blocks(), kMaxChunkBlocks);
    int blocks = 0;
    for (int c = 0; c < layout.chunks; ++c) {
      EXPECT_GE(shape.chunk_blocks(c), 1);
      blocks += shape.chunk_blocks(c);
    }
    EXPECT_EQ(blocks, shape.blocks());
  }
}

TEST_P(LayoutPlan, RefinesUntilADenseMatrixFits) {
  const auto [m, k] = GetParam();
  StripShape shape{m, k, 1};
  StripLayoutPlan layout = plan_strip_layout(m, k, 0.3, kH200);  // as if the mask were even
  const auto dense_bytes = [&] {
    const int blocks = StripShape{m, k, layout.chunks}.max_chunk_blocks();
    return unfolded_chunk_bytes(blocks, max_chunk_height(blocks));
  };
  for (int steps = 0; dense_bytes() > slot_capacity(layout.warps, kH200); ++steps) {
    ASSERT_LT(steps, 64);
    shape.chunks = layout.chunks;
    layout = refine_strip_layout(shape, layout);
  }
  shape.chunks = layout.chunks;
  for (int n : {1, 8, 9, 16, 17, 32, 33, 64}) {
    const SpmmPlan plan = plan_spmm(shape, dense_bytes(), layout.warps, n, kH200);
    EXPECT_GE(plan.n_tile, n);
    EXPECT_LE(plan.shared_bytes + 1024, kH200.shared_per_block) << plan.to_string();
    EXPECT_GE(plan.row_blocks * plan.warps, shape.strips());
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
      const StripShape shape{m, k, plan_strip_layout(m, k, density, kH200).chunks};
      EXPECT_GE(double(shape.blocks()) / shape.chunks, density > 0.55 ? 5 : 4)
          << m << "×" << k << " " << density;
    }
  }
}

TEST(SpmmPlan, TheSplitDoesNotDependOnTheTokens) {
  const StripShape shape{12288, 12288, 39};
  const SpmmPlan one = plan_spmm(shape, 8000, 12, 1, kH200);
  for (int n : {8, 17, 64}) {
    const SpmmPlan plan = plan_spmm(shape, 8000, 12, n, kH200);
    EXPECT_EQ(plan.grid, one.grid);
    EXPECT_EQ(plan.units, one.units);
    EXPECT_EQ(plan.row_blocks, one.row_blocks);
  }
}

TEST(SpmmPlan, RejectsChunksThatDoNotFit) {
  EXPECT_THROW(plan_spmm({4096, 4096, 5}, slot_capacity(16, kH200) + 16, 16, 8, kH200), Error);
  EXPECT_NO_THROW(plan_spmm({4096, 4096, 5}, slot_capacity(16, kH200), 16, 8, kH200));
}

TEST(SpmmPlan, Prints) {
  EXPECT_EQ(plan_spmm({4096, 4096, 8}, 6000, 16, 8, kH200).to_string().substr(0, 28),
            "stream n_tile 8 warps 16 row");
}

}  // namespace
}  // namespace spinfer::cuda
