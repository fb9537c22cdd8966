// How the Hopper SpMM cuts a weight and runs one problem. Pure functions: tested without a GPU, printable.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/format/strip_stream.h"

namespace spinfer::cuda {

struct GpuFacts;

/// The cut of a weight, chosen once when it is made resident.
struct StripLayoutPlan {
  int warps = 12;  ///< strips a thread block works on at a time: 8 or 12
  int chunks = 1;  ///< per strip
};

/// The cut for an m×k weight with this share of nonzeros, if its masks are about even. Depends on nothing
/// else, n least of all: a token's result does not change with the batch.
StripLayoutPlan plan_strip_layout(int64_t m, int64_t k, double density, const GpuFacts& gpu);
/// The next finer cut, for a weight whose largest chunk (`unfolded_bytes`) did not fit a slot. Throws if
/// there is none.
StripLayoutPlan refine_strip_layout(const StripShape& shape, StripLayoutPlan layout);
/// The most bytes an unfolded chunk may have.
int slot_capacity(int warps, const GpuFacts& gpu);

/// How one problem runs. Blocks take even runs of units: row block (warps·16 rows) by row block, chunk by
/// chunk.
struct SpmmPlan {
  int n_tile = 8;  ///< columns of wgmma: 8, 16, 32 or 64
  int warps = 16;  ///< multiplying warps; one more brings X
  int64_t row_blocks = 1;
  int64_t units = 1;  ///< row_blocks · chunks
  int grid = 1;
  int slot_bytes = 0;  ///< one chunk; each warp has kSpmmStages
  int shared_bytes = 0;
  size_t workspace_bytes = 0;  ///< fp32 partial sums of row blocks that two or more blocks share

  std::string to_string() const;
};

inline constexpr int kSpmmStages = 2;

/// Shared memory beside the slots: X stages, barriers, table, the overrun of the last slot.
inline constexpr int kSpmmFixedBytes = 32 * 1024 + 1024;

/// Throws `Error` if the largest chunk does not fit (see refine_strip_layout).
SpmmPlan plan_spmm(const StripShape& shape, int max_unfolded_bytes, int warps, int n, const GpuFacts& gpu);

}  // namespace spinfer::cuda
