// How the Hopper SpMM cuts a weight and runs one problem. Pure functions: tested without a GPU, printable.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/format/strip_stream.h"

namespace spinfer::cuda {

struct GpuFacts;

inline constexpr int kStreamMaxTokens = 96;

/// Multiplying warps of a thread block, a strip each; their strips are a team.
inline constexpr int kSpmmWarps = 8;
/// Thread blocks at most, whatever the GPU: what one has to add up must fit its shared memory.
inline constexpr int kMostSpmmBlocks = 160;

/// fp32 sums of the teams that a thread block shares with others, for the most tokens: the first of its run
/// and the last.
inline constexpr int64_t kPartialBytesPerBlock =
    int64_t{2} * kSpmmWarps * kStripRows * kStreamMaxTokens * int64_t(sizeof(float));

/// Shared memory of a thread block at most.
inline constexpr int kSpmmSharedBytes = 227 * 1024;

/// Chunks per strip for an m×k weight with this share of nonzeros. Depends on nothing else, n least of all: a
/// token's result does not change with the batch.
int plan_strip_chunks(int64_t m, int64_t k, double density, const GpuFacts& gpu);
/// The next finer cut, for a weight whose masks are too uneven for the kernel's rings. Throws if there is
/// none.
int refine_strip_chunks(const StripShape& shape);

/// How one problem runs. Blocks take runs of units, team by team, chunk by chunk (spmm_split.h).
struct SpmmPlan {
  int n_tile = 8;  ///< columns of the accumulators: 8, 16, 32, 64 or 96
  int64_t teams = 1;
  int64_t units = 1;  ///< teams · chunks
  int grid = 1;

  std::string to_string() const;
};

SpmmPlan plan_spmm(const StripShape& shape, int n, const GpuFacts& gpu);

}  // namespace spinfer::cuda
