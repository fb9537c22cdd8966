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

/// How one problem runs. Clusters of two blocks own tiles of 128 · groups rows × n_tile tokens; tiles are
/// dealt whole, except the last `stream_tiles`, whose chunks are dealt evenly to all clusters.
struct PrefillPlan {
  int n_tile = 256;  ///< 128 or 256 tokens
  int groups = 2;    ///< warpgroups of a block that multiply: 2, or 3 with 128 tokens
  int tiles_m = 1;
  int tiles_n = 1;
  int clusters = 1;
  int whole_tiles = 0;   ///< dealt whole: a multiple of clusters
  int stream_tiles = 0;  ///< shared chunk-wise: whole_tiles + stream_tiles = tiles_m · tiles_n
  int slot_bytes = 0;    ///< one chunk of one strip in shared memory; each warp has kPrefillSlots
  int stages = 0;  ///< X tiles of 32 columns in flight: 4, 6 or 8; 0: a chunk does not fit, nothing can run
  int shared_bytes = 0;
  size_t workspace_bytes = 0;  ///< partial sums of shared tiles

  bool runs() const { return stages > 0; }
  std::string to_string() const;
};

/// A function of its arguments alone.
/// `max_chunk_rows` as in StripStreamView.
PrefillPlan plan_prefill(const StripShape& shape, int max_chunk_rows, int n, const GpuFacts& gpu);

/// The most workspace any weight and n can need, the padded copy of x aside.
size_t prefill_workspace_bytes(const GpuFacts& gpu);

/// y = act(W·x + b) + residual; `plan_prefill` must run it.
void spmm_prefill(Context& context, const StripStream& w, const LinearArgs& args);

}  // namespace spinfer::cuda
