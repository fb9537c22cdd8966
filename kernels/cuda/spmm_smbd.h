// The portable SpMM: SMBD (SpInfer, EuroSys'25, section 4.3) on the canonical TCA-BME arrays, for sm_80 and
// newer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/ops.h"

namespace spinfer::cuda {

class Context;
struct GpuFacts;

/// How the portable kernel runs one problem. Legal for every m, k, n ≥ 1 and any mask: a full tile fits.
struct SmbdPlan {
  int n_tile = 8;          ///< tokens a block multiplies: 8, 16, 32 or 64
  int n_blocks = 1;        ///< ceil(n / n_tile)
  int64_t row_blocks = 1;  ///< group tile rows
  int split = 1;           ///< blocks that share a row of group tiles; partial sums are added in block order
  int shared_bytes = 0;
  size_t workspace_bytes = 0;  ///< fp32 partial sums; 0 without a split

  std::string to_string() const;
};

/// A function of its arguments alone. The split depends on m, k and the GPU, not on n: a token's result is
/// bitwise the same whatever else is in the batch.
SmbdPlan plan_smbd(int64_t m, int64_t k, int n, const GpuFacts& gpu);

/// y = act(W·x + b) + residual; `args.w.packed` must be set.
void spmm_smbd(Context& context, const LinearArgs& args);

}  // namespace spinfer::cuda
