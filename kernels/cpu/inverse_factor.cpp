// inverse_factor, in fp64 with Eigen. With J the reversal of rows and columns and J·H·J = L·Lᵀ, H = R·Rᵀ
// where R = J·L·J is upper triangular, so U = R⁻¹ = J·L⁻¹·J: one Cholesky decomposition and one triangular
// inverse.
#include <Eigen/Cholesky>
#include <algorithm>

#include "kernels/cpu/pruning_ops.h"

namespace spinfer::cpu {
namespace {

using Matrix = Eigen::MatrixXd;

/// Lower triangle of J·H·J; row and column i of H become k − 1 − i.
Matrix damped_reversed(const InverseFactorArgs& a) {
  double sum = 0;
  int64_t live = 0;
  for (int64_t i = 0; i < a.k; ++i) {
    const double diagonal = double(a.gram[i * a.k + i]);
    sum += diagonal;
    live += diagonal != 0;
  }
  const double mean = live > 0 ? sum / double(live) : 1;
  Matrix h(a.k, a.k);
  for (int64_t i = 0; i < a.k; ++i) {
    const int64_t col = a.k - 1 - i;
    for (int64_t j = 0; j < i; ++j) h(a.k - 1 - j, col) = double(a.gram[i * a.k + j]);
    const double diagonal = double(a.gram[i * a.k + i]);
    h(col, col) = (diagonal != 0 ? diagonal : mean) + a.dampening * mean;
  }
  return h;
}

}  // namespace

bool inverse_factor(DeviceContext& context, const InverseFactorArgs& a) {
  constexpr int64_t kColumns = 64;  // of the inverse, solved for at a time
  Matrix h = damped_reversed(a);
  const Eigen::LLT<Eigen::Ref<Matrix>> cholesky(h);  // in place
  if (cholesky.info() != Eigen::Success || !h.diagonal().allFinite()) return false;
  context.pool.parallel_for((a.k + kColumns - 1) / kColumns, [&](int64_t piece) {
    const int64_t first = piece * kColumns, cols = std::min(kColumns, a.k - first), rows = a.k - first;
    Matrix inverse = Matrix::Identity(rows, cols);  // above `first` these columns are zero
    h.bottomRightCorner(rows, rows).triangularView<Eigen::Lower>().solveInPlace(inverse);
    for (int64_t j = 0; j < cols; ++j) {
      float* out = a.gram + (a.k - 1 - first - j);  // column k − 1 − (first + j) of U
      for (int64_t i = 0; i < a.k; ++i) {
        const int64_t row = a.k - 1 - i - first;
        out[i * a.k] = row >= j ? float(inverse(row, j)) : 0.0f;
      }
    }
  });
  return true;
}

}  // namespace spinfer::cpu
