#include <fmt/format.h>

#include <algorithm>

#include "kernels/cuda/context.h"
#include "kernels/cuda/prefill_tile.h"
#include "kernels/cuda/spmm_prefill.h"

namespace spinfer::cuda {
namespace {

constexpr int kStaticBytes = 1024;  // the decoder's table, and the alignment of X behind it
static_assert(std::max(prefill_shared_bytes(256), prefill_shared_bytes(128)) + kStaticBytes <=
              GpuFacts{}.shared_per_block);

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
    plan.workspace_bytes = size_t(plan.clusters) * size_t(prefill_cluster_rows(plan.n_tile)) *
                           size_t(plan.n_tile) * sizeof(float);
}

int max_clusters(const GpuFacts& gpu) {
  return std::max(1, gpu.sm_count / kPrefillClusterBlocks);
}

}  // namespace

PrefillPlan plan_prefill(const StripShape& shape, int n, const GpuFacts& gpu) {
  PrefillPlan plan;
  // A tile of 256 tokens decodes each weight half as often; one of 128 wastes fewer columns of the last tile.
  const int wide = (n + 255) / 256 * 256, narrow = (n + 127) / 128 * 128;
  plan.n_tile = double(narrow) * 1.15 < double(wide) ? 128 : 256;
  plan.shared_bytes = prefill_shared_bytes(plan.n_tile);
  const int rows = prefill_cluster_rows(plan.n_tile);
  plan.tiles_m = int((shape.m + rows - 1) / rows);
  plan.tiles_n = (n + plan.n_tile - 1) / plan.n_tile;
  deal(plan, shape.chunks, max_clusters(gpu));
  return plan;
}

size_t prefill_workspace_bytes(const GpuFacts& gpu) {
  return size_t(max_clusters(gpu)) * size_t(prefill_cluster_rows(256)) * 256 *
         sizeof(float);  // more than with tiles of 128
}

std::string PrefillPlan::to_string() const {
  return fmt::format(
      "prefill: {}×{} tiles of {} rows × {} tokens, {} whole and {} shared among {} clusters, {} B shared, "
      "{} B workspace",
      tiles_m, tiles_n, prefill_cluster_rows(n_tile), n_tile, whole_tiles, stream_tiles, clusters,
      shared_bytes, workspace_bytes);
}

}  // namespace spinfer::cuda
