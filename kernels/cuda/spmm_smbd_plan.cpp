#include <fmt/format.h>

#include <algorithm>

#include "kernels/cuda/context.h"
#include "kernels/cuda/smbd_tile.h"
#include "kernels/cuda/spmm_smbd.h"

namespace spinfer::cuda {

SmbdPlan plan_smbd(int64_t m, int64_t k, int n, const GpuFacts& gpu) {
  // Shared memory and registers let an SM hold 6–10 blocks. With 4 a SM (one and a bit waves of few blocks)
  // 28672×8192 at 8 tokens took 253–297 µs on an H200.
  constexpr int kBlocksPerSm = 12;
  constexpr int kMinTilesPerBlock = 4;  // below, the pipeline never fills
  SmbdPlan plan;
  plan.n_tile = n <= 8 ? 8 : n <= 16 ? 16 : n <= 32 ? 32 : 64;
  plan.n_blocks = (n + plan.n_tile - 1) / plan.n_tile;
  plan.row_blocks = group_tiles(m);
  const int64_t tiles = group_tiles(k);
  const int64_t wanted = std::max<int64_t>(1, int64_t(gpu.sm_count) * kBlocksPerSm / plan.row_blocks);
  plan.split = int(std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, tiles / kMinTilesPerBlock)));
  plan.shared_bytes = int(smbd_shared_bytes(plan.n_tile));
  if (plan.split > 1) plan.workspace_bytes = size_t(plan.split) * size_t(n) * size_t(m) * sizeof(float);
  return plan;
}

std::string SmbdPlan::to_string() const {
  return fmt::format("smbd: n tile {} × {}, {} row blocks × split {}, {} B shared, {} B workspace", n_tile,
                     n_blocks, row_blocks, split, shared_bytes, workspace_bytes);
}

}  // namespace spinfer::cuda
