#include "kernels/cuda/spmm_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/check.h"
#include "kernels/cuda/context.h"

namespace spinfer::cuda {
namespace {

constexpr int kStaticBytes = 1024;  // the nibble table, and the alignment of X behind it
constexpr int kWarpChoices[] = {12, 8};

int64_t row_blocks_of(const StripShape& shape, int warps) {
  return (shape.strips() + warps - 1) / warps;
}

/// Bytes of the highest of some 10^5 chunks under an even random mask: streams of `blocks` blocks are
/// binomial, their longest 5.2 standard deviations above the mean, padding zeros added (half of the full
/// nibbles).
int expected_unfolded_bytes(int blocks, double density) {
  const double weights = 32.0 * blocks;
  const double mean = weights * (density + std::pow(density, 4) * 0.5 / 4);
  const double sigma = std::sqrt(weights * density * (1 - density));
  const int height = int((mean + 5.2 * sigma) / 2) + 1;
  return unfolded_chunk_bytes(blocks, std::min(height, max_chunk_height(blocks)));
}

/// Blocks a chunk must have on average so that the layout stays within 4 % of the formula's bytes. Ranks,
/// directory and ends of streams weigh 2.5 % at four blocks and 50 %; padding zeros leave less room the
/// denser the matrix.
double fewest_chunk_blocks(double density) {
  return density > 0.55 ? 5 : 4;
}

/// Time of the busiest thread block, in blocks of columns of one of twelve strips. A chunk's fixed costs
/// (barriers, ranks, the decoder's start: about 190 instructions) are those of 1.3 blocks. With 8 warps
/// instead of 12 the schedulers idle more: 3 to 12 % measured at 12288×12288 and 28672×8192.
double longest_run(const StripShape& shape, int warps, int sm_count) {
  const int64_t units = row_blocks_of(shape, warps) * shape.chunks;
  const int64_t grid = std::min<int64_t>(units, sm_count);
  const double per_unit = double(shape.blocks()) / shape.chunks + 1.3;
  return double((units + grid - 1) / grid) * per_unit * (warps == 8 ? 8 * 1.15 : warps) / 12;
}

}  // namespace

int slot_capacity(int warps, const GpuFacts& gpu) {
  return (gpu.shared_per_block - kStaticBytes - kSpmmFixedBytes) / (warps * kSpmmStages) / kChunkAlign *
         kChunkAlign;
}

StripLayoutPlan plan_strip_layout(int64_t m, int64_t k, double density, const GpuFacts& gpu) {
  StripShape shape{m, k, 1};
  StripLayoutPlan best;
  double best_cost = std::numeric_limits<double>::infinity();
  for (const int warps : kWarpChoices) {
    int blocks = 1;
    while (blocks < kMaxChunkBlocks &&
           expected_unfolded_bytes(blocks + 1, density) <= slot_capacity(warps, gpu)) {
      ++blocks;
    }
    const int fewest = (shape.blocks() + blocks - 1) / blocks;
    for (int chunks = fewest; chunks <= std::min(shape.blocks(), fewest + fewest / 2 + 2); ++chunks) {
      shape.chunks = chunks;
      const bool too_short = double(shape.blocks()) / chunks < fewest_chunk_blocks(density);
      const double cost = longest_run(shape, warps, gpu.sm_count) * (too_short ? 2 : 1);
      if (cost < best_cost * 0.999) {
        best_cost = cost;
        best = {warps, chunks};
      }
    }
  }
  return best;
}

StripLayoutPlan refine_strip_layout(const StripShape& shape, StripLayoutPlan layout) {
  const int blocks = shape.max_chunk_blocks();
  if (blocks > 1) {
    layout.chunks = (shape.blocks() + blocks - 2) / (blocks - 1);
    return layout;
  }
  check(layout.warps > 8, "stream SpMM {}×{}: a block of 64 columns does not fit shared memory", shape.m,
        shape.k);
  layout.warps -= 4;
  return layout;
}

std::string SpmmPlan::to_string() const {
  return fmt::format(
      "stream n_tile {} warps {} row_blocks {} units {} grid {} slot {} B shared {} B workspace {} B", n_tile,
      warps, row_blocks, units, grid, slot_bytes, shared_bytes, workspace_bytes);
}

SpmmPlan plan_spmm(const StripShape& shape, int max_unfolded_bytes, int warps, int n, const GpuFacts& gpu) {
  SpmmPlan plan;
  plan.n_tile = n <= 8 ? 8 : n <= 16 ? 16 : n <= 32 ? 32 : 64;
  plan.warps = warps;
  plan.row_blocks = row_blocks_of(shape, warps);
  plan.units = plan.row_blocks * shape.chunks;
  plan.grid = int(std::min<int64_t>(plan.units, gpu.sm_count));
  plan.slot_bytes = (max_unfolded_bytes + kChunkAlign - 1) / kChunkAlign * kChunkAlign;
  check(plan.slot_bytes <= slot_capacity(warps, gpu),
        "stream SpMM {}×{}: a chunk takes {} bytes of shared memory, {} fit with {} warps", shape.m, shape.k,
        plan.slot_bytes, slot_capacity(warps, gpu), warps);
  plan.shared_bytes = kSpmmFixedBytes + warps * kSpmmStages * plan.slot_bytes;
  plan.workspace_bytes =
      size_t(plan.grid) * 2 * size_t(warps) * kStripRows * size_t(plan.n_tile) * sizeof(float);
  return plan;
}

}  // namespace spinfer::cuda
