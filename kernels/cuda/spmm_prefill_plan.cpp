#include <fmt/format.h>

#include <algorithm>

#include "kernels/cuda/context.h"
#include "kernels/cuda/prefill_tile.h"
#include "kernels/cuda/spmm_prefill.h"

namespace spinfer::cuda {
namespace {

constexpr int kStaticBytes = 1024;  // the decoder's tables, and the alignment of X behind it

/// Deals tiles to clusters: whole waves first, and the rest (with one more wave, so that every cluster has
/// between one and two tiles' worth) chunk by chunk.
void deal(PrefillPlan& plan, int chunks, int max_clusters) {
  const int64_t tiles = int64_t(plan.tiles_m) * plan.tiles_n;
  plan.clusters = int(std::min<int64_t>(max_clusters, tiles * chunks));
  const int64_t waves = tiles / plan.clusters, rest = tiles % plan.clusters;
  const int64_t whole_waves = rest == 0 ? waves : std::max<int64_t>(0, waves - 1);
  plan.whole_tiles = int(whole_waves * plan.clusters);
  plan.stream_tiles = int(tiles - plan.whole_tiles);
  if (plan.stream_tiles > 0)
    plan.workspace_bytes = size_t(plan.clusters) * size_t(prefill_cluster_rows(plan.groups)) *
                           size_t(plan.n_tile) * sizeof(float);
}

/// Whether two chunks a strip and `stages` X stages fit; sets stages and bytes if so.
bool fit(PrefillPlan& plan, int n_tile, int groups, int stages, int capacity) {
  const int fixed = prefill_fixed_bytes(groups, plan.slot_bytes);
  plan.n_tile = n_tile;
  plan.groups = groups;
  if (fixed + stages * prefill_stage_bytes(n_tile) > capacity) return false;
  plan.stages = stages;
  plan.shared_bytes = fixed + stages * prefill_stage_bytes(n_tile);
  return true;
}

int max_clusters(const GpuFacts& gpu) {
  return std::max(1, gpu.sm_count / kPrefillClusterBlocks);
}

}  // namespace

PrefillPlan plan_prefill(const StripShape& shape, int max_chunk_rows, int n, const GpuFacts& gpu) {
  PrefillPlan plan;
  plan.slot_bytes = prefill_slot_bytes(shape.max_chunk_blocks(), max_chunk_rows);
  const int capacity = gpu.shared_per_block - kStaticBytes;
  // A tile of 256 tokens decodes each weight half as often; one of 128 wastes fewer columns of the last tile.
  const int wide = (n + 255) / 256 * 256, narrow = (n + 127) / 128 * 128;
  const bool prefer_narrow = double(narrow) * 1.15 < double(wide);
  const auto first_fit = [&](int n_tile, int groups, std::initializer_list<int> stages) {
    return std::any_of(stages.begin(), stages.end(),
                       [&](int count) { return fit(plan, n_tile, groups, count, capacity); });
  };
  // The numbers of stages for which spmm_prefill.cu has kernels.
  if ((prefer_narrow || !first_fit(256, 2, {6, 4})) && !first_fit(128, 3, {8, 6, 4}))
    first_fit(128, 2, {8, 4});
  const int rows = prefill_cluster_rows(plan.groups);
  plan.tiles_m = int((shape.m + rows - 1) / rows);
  plan.tiles_n = (n + plan.n_tile - 1) / plan.n_tile;
  deal(plan, shape.chunks, max_clusters(gpu));
  return plan;
}

size_t prefill_workspace_bytes(const GpuFacts& gpu) {
  return size_t(max_clusters(gpu)) * size_t(prefill_cluster_rows(2)) * 256 *
         sizeof(float);  // more than 3 · 128
}

std::string PrefillPlan::to_string() const {
  return fmt::format(
      "prefill: {}×{} tiles of {} rows × {} tokens, {} whole and {} shared among {} clusters, {} stages, {} "
      "B a slot, {} B shared, {} B workspace",
      tiles_m, tiles_n, prefill_cluster_rows(groups), n_tile, whole_tiles, stream_tiles, clusters, stages,
      slot_bytes, shared_bytes, workspace_bytes);
}

}  // namespace spinfer::cuda
