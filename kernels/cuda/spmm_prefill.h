// The Hopper SpMM of the prefill regime: many tokens, W as strip streams (kernels/format/strip_stream.h),
// decoded straight into wgmma's A registers. Needs sm_90a.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/format/strip_stream.h"
#include "kernels/ops.h"

namespace spinfer::cuda {

class Context;
struct GpuFacts;
struct StripStream;

/// How one problem runs. Clusters of two blocks own tiles of prefill_cluster_rows × n_tile tokens; tiles are
/// dealt whole, except the last `stream_tiles`, whose chunks are dealt evenly to all clusters.
struct PrefillPlan {
  int n_tile = 256;  ///< 128 or 256 tokens
  int tiles_m = 1;
  int tiles_n = 1;
  int clusters = 1;
  int whole_tiles = 0;   ///< dealt whole: a multiple of clusters
  int stream_tiles = 0;  ///< shared chunk-wise: whole_tiles + stream_tiles = tiles_m · tiles_n
  int shared_bytes = 0;
  size_t workspace_bytes = 0;  ///< partial sums of shared tiles

  std::string to_string() const;
};

/// A function of its arguments alone. Whatever fits the decode kernel's rings runs.
PrefillPlan plan_prefill(const StripShape& shape, int n, const GpuFacts& gpu);

/// The most workspace any weight and n can need, the padded copy of x aside.
size_t prefill_workspace_bytes(const GpuFacts& gpu);

/// y = act(W·x + b) + residual.
void spmm_prefill(Context& context, const StripStream& w, const LinearArgs& args);

}  // namespace spinfer::cuda
