// Dense y = act(W·x + b) + residual through cuBLASLt and cuBLAS with autotuned algorithms: the engine's dense
// linear, the baseline of every benchmark, and the second half of the scratch prefill.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/ops.h"

namespace spinfer::cuda {

class Context;

/// One dense multiplication. W [m][k], x [n][k], y [n][m], all row-major device memory.
struct DenseArgs {
  int64_t m = 0;
  int64_t k = 0;
  int n = 0;
  const Half* w = nullptr;
  const Half* x = nullptr;
  const Half* bias = nullptr;  ///< [m], or null
  Activation act = Activation::none;
  const Half* residual = nullptr;  ///< [n][m], or null; may be y
  void* y = nullptr;               ///< Half, or float if `fp32_out`
  bool fp32_out = false;           ///< logits: not rounded to fp16
  bool tuned = true;        ///< false: cuBLASLt's first choice for exactly this problem, nothing is timed
  void* scratch = nullptr;  ///< `dense_scratch_bytes` of device memory; null: the context's workspace
};

/// How one problem is multiplied, as chosen by timing. For reports.
struct DenseChoice {
  std::string algorithm;  ///< "cublasGemmEx" or "cublasLt #i of c"
  float us = 0;           ///< its time when chosen, weights cold; 0 if it was not timed
  int candidates = 0;     ///< how many were timed
};

/// Runs it on the context's stream. The first call with a shape times the candidates (tens of milliseconds,
/// some scratch memory), except during graph capture, where the first heuristic is taken and nothing is
/// remembered. The choice is per (m, k, token_bucket(n), epilogue, alignment).
void dense_linear(Context& context, const DenseArgs& args);
/// What `dense_linear` does for this problem, timing it if that has not happened.
DenseChoice dense_choice(Context& context, const DenseArgs& args);

/// Scratch an epilogue needs that cuBLASLt cannot do (activation with residual, erf GELU, SiLU).
size_t dense_scratch_bytes(int64_t m, int n);
/// The same, 0 where cuBLASLt's epilogue does it.
size_t dense_scratch_needed(const DenseArgs& args);

/// Algorithms chosen so far; lives in the context.
class DensePlans {
 public:
  DensePlans();
  ~DensePlans();
  struct Cache;
  Cache& cache() { return *cache_; }

 private:
  std::unique_ptr<Cache> cache_;
};

}  // namespace spinfer::cuda
