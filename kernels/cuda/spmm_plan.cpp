#include "kernels/cuda/spmm_plan.h"

#include <algorithm>
#include <limits>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/spmm_split.h"

namespace spinfer::cuda {
namespace {

int64_t teams_of(const StripShape& shape) {
  return (shape.strips() + kSpmmWarps - 1) / kSpmmWarps;
}

/// Blocks a chunk must have on average so that the layout stays within 4 % of the formula's bytes: a head
/// weighs 144 bytes, a block 256 and 4096 · density; explicit zeros leave less room the denser the matrix.
/// (4096 columns, 50 / 60 / 64 % zeros, four blocks a chunk: 3.6 / 3.5 / 3.5 %.)
double fewest_chunk_blocks(double density) {
  return density > 0.55 ? 4.6 : density > 0.35 ? 4 : 6;
}

/// Blocks a chunk may have. Longer ones gained nothing when strips had 16 rows (12288×12288, n = 8, µs with 5
/// / 6 / 8 blocks: 49.8 / 48.8 / 49.5 at 50 %), and at 60 % with 32 (h200_decode_steps.json, "late_blocks").
int most_chunk_blocks(double density) {
  return density > 0.45 ? 6 : density > 0.35 ? 7 : kMaxChunkBlocks;
}

/// How much later than most a thread block is done with the same work, in blocks of columns (half a
/// microsecond each): they start one after the other, and the last ask for their first pieces when memory is
/// busiest. (12288×4096, 60 %, n = 16, all multiplied, µs after the end of the launch before, by twelves of
/// the blocks: 14.5, 14.5, 14.6, 14.6, 14.7, 14.8, 14.8, 14.9, 15.0, 15.0, 15.3, the very last 16.3:
/// "late_blocks" in h200_decode_steps.json. Six tenths of that are best where a team's end counts too.)
double lateness(int block, int grid) {
  if (block + 1 == grid) return 1.9;
  const double place = double(block) / grid;
  return place < 0.5 ? -0.3 : place < 0.75 ? 0 : place < 0.92 ? 0.36 : place < 0.955 ? 0.6 : 1.1;
}

/// When the last thread block is done, in blocks of columns. A chunk's fixed costs (record, deal, first
/// loads) are half a block's: 0.2 to 0.3 µs. To end a team inside a run, leave its sums and begin the next
/// takes a whole one's: with it 5120×5120 (50 to 70 %, n = 8, 16, 32) is cut so that it takes 3, 1 to 2 and 4
/// to 5 % less time; others measured stay within 1 %, but 28672×8192 (70 %, n = 8) takes 2.5 % more ("cuts").
double time_of_runs(const StripShape& shape, const GpuFacts& gpu) {
  const SpmmPlan plan = plan_spmm(shape, 1, gpu);
  const auto split = SpmmSplit::of(plan.units, shape.chunks, plan.grid);
  const auto blocks_before = [&](int unit) {
    const int team = split.team_of(unit);
    return int64_t{team} * shape.blocks() + shape.block_begin(unit - team * shape.chunks);
  };
  double last = 0;
  for (int block = 0; block < plan.grid; ++block) {
    const int begin = split.first_unit(block), end = split.first_unit(block + 1);
    const double blocks = double(blocks_before(end) - blocks_before(begin));
    const int teams_ended = split.team_of(end - 1) - split.team_of(begin);
    last = std::max(last, blocks + 0.5 * (end - begin) + teams_ended + lateness(block, plan.grid));
  }
  return last;
}

}  // namespace

int plan_strip_chunks(int64_t m, int64_t k, double density, const GpuFacts& gpu) {
  StripShape shape{m, k, 1};
  const int most = most_chunk_blocks(density), fewest = (shape.blocks() + most - 1) / most;
  int best = fewest;
  double best_cost = std::numeric_limits<double>::infinity();
  for (int chunks = fewest; chunks <= shape.blocks(); ++chunks) {
    shape.chunks = chunks;
    if (chunks > fewest && double(shape.blocks()) / chunks < fewest_chunk_blocks(density)) break;
    const double cost = time_of_runs(shape, gpu);
    if (cost < best_cost * 0.999) {
      best_cost = cost;
      best = chunks;
    }
  }
  return best;
}

int refine_strip_chunks(const StripShape& shape) {
  check(shape.chunks < shape.blocks(), "stream SpMM {}×{}: a block of 64 columns does not fit the ring",
        shape.m, shape.k);
  return std::min(2 * shape.chunks, shape.blocks());
}

std::string SpmmPlan::to_string() const {
  return fmt::format("stream n_tile {} teams {} units {} grid {}", n_tile, teams, units, grid);
}

SpmmPlan plan_spmm(const StripShape& shape, int n, const GpuFacts& gpu) {
  SpmmPlan plan;
  plan.n_tile = n <= 8 ? 8 : n <= 16 ? 16 : n <= 32 ? 32 : n <= 64 ? 64 : 96;
  plan.teams = teams_of(shape);
  plan.units = plan.teams * shape.chunks;
  plan.grid = int(std::min<int64_t>({plan.units, gpu.sm_count, kMostSpmmBlocks}));
  return plan;
}

}  // namespace spinfer::cuda
