// The Hopper SpMM of the decode regime: y = act(W·x + b) + residual for n ≤ 96 tokens, W as strip streams
// (kernels/format/strip_stream.h). Needs sm_90a.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/cuda/spmm_plan.h"
#include "kernels/format/strip_stream.h"
#include "kernels/ops.h"

namespace spinfer::cuda {

class Context;

/// Where a multiplying warp of a thread block begins: found once, as looking it up would be the first two
/// microseconds of every launch.
struct alignas(16) RunStart {
  uint32_t record;        ///< of its first chunk, in units of 16 bytes among the records
  uint32_t record_bytes;  ///< of that; a warp without a strip has the last one's
  uint32_t row;           ///< of its first piece, among all strips' rows
  uint32_t pieces;        ///< from there on that the run needs of the first strip
};

/// A weight in the device layout. `Linear::layout` points to one of these (host memory) where a GPU weight
/// has it.
struct StripStream {
  StripStreamView view;            ///< device pointers
  const RunStart* runs = nullptr;  ///< [thread block][warp], device
  int64_t device_bytes = 0;        ///< all of it
  std::vector<std::shared_ptr<const void>> storage;
};

/// Makes the layout on the GPU from canonical arrays on the same GPU, which may be freed afterwards.
/// Synchronises the context's stream. Throws `Error` if `paired` (StripShape) and the matrix cannot be.
StripStream make_strip_stream_on_device(Context& context, const TcaBmeView& device_matrix,
                                        bool paired = false);
/// The same with a cut of the caller's, for tests and tuning.
StripStream make_strip_stream_on_device(Context& context, const TcaBmeView& device_matrix, int chunks,
                                        bool paired = false);

/// `StripStream::runs` of a layout: bytes of device memory, and a kernel on the context's stream that writes
/// them.
size_t run_start_bytes(const StripShape& shape, const GpuFacts& gpu);
void find_run_starts(Context& context, const StripStreamView& view, RunStart* runs);

/// One multiplication. Device pointers.
struct SpmmArgs {
  const StripStream& w;
  const Half* x = nullptr;     ///< [n][k]
  int n = 0;                   ///< 1 … kStreamMaxTokens
  const Half* bias = nullptr;  ///< [m], or null
  Activation act = Activation::none;
  const Half* residual = nullptr;  ///< [n][m], or null; may be y
  bool gated = false;  ///< y [n][m/2] = act(first half of the rows) · second half; paired strips only
  const DeferredNorm* norm_of_x = nullptr;  ///< see LinearArgs
  const DeferredNorm* norm_of_y = nullptr;
  void* y = nullptr;      ///< [n][m] Half, or float if `fp32_out`
  bool fp32_out = false;  ///< logits: not rounded to fp16; no residual
};

/// Queues it on the context's stream, as a programmatic dependent launch: weights stream in while the kernel
/// before still runs. Up to 16 tokens products are added up in another order than above. A deterministic
/// context takes up to kDecodeTokens, all as the most: the result of a token depends on its x alone, bit for
/// bit.
void spmm_stream(Context& context, const SpmmArgs& args);

}  // namespace spinfer::cuda
