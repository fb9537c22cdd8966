// The ops of pruning with calibration data, in the manner of kernels/ops.h: pointers are device pointers of
// the backend that runs the op, matrices are row-major.
#pragma once

#include <cstdint>

#include "kernels/half.h"

namespace spinfer {

/// Adds a batch of a linear's inputs to what Wanda (squares) and SparseGPT (gram) need of them.
struct InputStatisticsArgs {
  const Half* x;  ///< [n][k]
  int n;
  int64_t k;
  double* squares;  ///< [k] += Σ_t x[t][j]², token after token in fp64
  float* gram;      ///< [k][k] += Xᵀ·X in fp32; only the lower triangle counts; null: not wanted
};

/// In place: gram G (lower triangle, the rest is not read) → U, upper triangular with zeros below, where H⁻¹
/// = Uᵀ·U and H = G + λ·I, λ = dampening · the mean of the diagonal entries that are not zero. An input that
/// was always zero (diagonal entry 0) counts as uncorrelated, with that mean as its diagonal entry.
struct InverseFactorArgs {
  float* gram;  ///< [k][k]
  int64_t k;
  double dampening;
};

/// SparseGPT (Frantar & Alistarh 2023, algorithm 1): prunes W and moves what the zeros lose onto the weights
/// still to come. Block after block of kSparseGptBlock columns, the round(sparsity · count) weights with the
/// smallest (w / U[j][j])² go, the first in row-major order among equal ones.
inline constexpr int kSparseGptBlock = 128;
struct SparseGptArgs {
  float* w;             ///< [m][k], in and out; pruned ones are 0 exactly
  const float* factor;  ///< [k][k], see InverseFactorArgs
  int64_t m;
  int64_t k;
  double sparsity;  ///< 0…1
};

}  // namespace spinfer
