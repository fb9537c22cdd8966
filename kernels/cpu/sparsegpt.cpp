// sparsegpt: blocks of columns in turn; within one, threads take rows, which do not depend on each other once
// the block's mask is known.
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/pruning_ops.h"

namespace spinfer::cpu {
namespace {

using RowMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Block = Eigen::Map<RowMatrix, 0, Eigen::OuterStride<>>;
using ConstBlock = Eigen::Map<const RowMatrix, 0, Eigen::OuterStride<>>;
constexpr int64_t kRows =
    32;  // taken together, so that a product's sums do not depend on the number of threads

/// Columns [begin, begin + cols) of all rows.
struct Columns {
  int64_t begin, cols;
};

/// mask[row][col] of a block: 1 where a weight goes.
std::vector<uint8_t> choose(DeviceContext& context, const SparseGptArgs& a, Columns block) {
  const int64_t count = a.m * block.cols;
  std::vector<float> scores(static_cast<size_t>(count));
  context.pool.parallel_for(a.m, [&](int64_t row) {
    for (int64_t c = 0; c < block.cols; ++c) {
      const int64_t col = block.begin + c;
      const float ratio = a.w[row * a.k + col] / a.factor[col * a.k + col];
      scores[size_t(row * block.cols + c)] = ratio * ratio;
    }
  });
  std::vector<uint8_t> mask(static_cast<size_t>(count));
  const int64_t zeros = std::llround(a.sparsity * double(count));
  if (zeros == 0) return mask;
  std::vector<float> order = scores;
  std::nth_element(order.begin(), order.begin() + (zeros - 1), order.end());
  const float threshold = order[size_t(zeros - 1)];
  int64_t equal = zeros - std::count_if(order.begin(), order.end(), [&](float s) { return s < threshold; });
  for (size_t i = 0; i < scores.size(); ++i)
    mask[i] = scores[i] < threshold || (scores[i] == threshold && equal-- > 0);
  return mask;
}

/// Prunes one row of a block and corrects what follows in it. errors[c]: what the row's later blocks must
/// make up for.
void prune_row(const SparseGptArgs& a, Columns block, int64_t row, const uint8_t* mask, float* errors) {
  float* w = a.w + row * a.k + block.begin;
  for (int64_t c = 0; c < block.cols; ++c) {
    errors[c] = 0;
    if (!mask[c]) continue;
    const float* u = a.factor + (block.begin + c) * a.k + block.begin;
    errors[c] = w[c] / u[c];
    w[c] = 0;
    for (int64_t j = c + 1; j < block.cols; ++j) w[j] -= errors[c] * u[j];
  }
}

}  // namespace

void sparsegpt(DeviceContext& context, const SparseGptArgs& a) {
  for (int64_t begin = 0; begin < a.k; begin += kSparseGptBlock) {
    const Columns block{begin, std::min<int64_t>(kSparseGptBlock, a.k - begin)};
    const auto mask = choose(context, a, block);
    const int64_t end = begin + block.cols, rest = a.k - end;
    const ConstBlock factor(a.factor + begin * a.k + end, block.cols, rest, Eigen::OuterStride<>(a.k));
    context.pool.parallel_for((a.m + kRows - 1) / kRows, [&](int64_t piece) {
      const int64_t first = piece * kRows, rows = std::min(kRows, a.m - first);
      RowMatrix errors(rows, block.cols);
      for (int64_t r = 0; r < rows; ++r)
        prune_row(a, block, first + r, mask.data() + (first + r) * block.cols,
                  errors.data() + r * block.cols);
      if (rest > 0)
        Block(a.w + first * a.k + end, rows, rest, Eigen::OuterStride<>(a.k)).noalias() -= errors * factor;
    });
  }
}

}  // namespace spinfer::cpu
