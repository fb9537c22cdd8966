// input_statistics: column sums of squares, and the gram matrix XᵀX.
//
// Tokens are taken in pieces. A piece is widened to fp32 in panels of 32 columns, [panel][token][32], so that
// the product of two panels reads 64 KiB one after the other; threads take pairs of panels.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/input_statistics.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/simd-inl.h"

#include <algorithm>

#include "kernels/cpu/pruning_ops.h"

HWY_BEFORE_NAMESPACE();
namespace spinfer::cpu::HWY_NAMESPACE {

constexpr int kPanel = 32;  // columns; a multiple of every vector length
static_assert(kPanel % kLanes == 0);

/// Columns [first, first + 32) of `tokens` rows, zeros past k.
void widen_panel(const Half* x, int64_t k, int tokens, int64_t first, float* panel) {
  const int64_t count = std::min<int64_t>(kPanel, k - first);
  for (int t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < kPanel; i += kLanes) {
      const int64_t left = std::clamp<int64_t>(count - i, 0, kLanes);
      store(left > 0 ? load_first(x + t * k + first + i, left) : zero(), panel + int64_t{t} * kPanel + i);
    }
  }
}

/// product[32][32] = Aᵀ·B of two panels.
void multiply_panels(const float* a, const float* b, int tokens, float* product) {
  constexpr int kRows = 4;  // 4 × 2 sums hide the latency of the additions
  constexpr int64_t kStep = std::min<int64_t>(2 * kLanes, kPanel), kVectors = kStep / kLanes;
  for (int row = 0; row < kPanel; row += kRows) {
    for (int64_t col = 0; col < kPanel; col += kStep) {
      Vec sums[kRows][2] = {{zero(), zero()}, {zero(), zero()}, {zero(), zero()}, {zero(), zero()}};
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t v = 0; v < kVectors; ++v) {
          const Vec right = load(b + t * kPanel + col + v * kLanes);
          for (int r = 0; r < kRows; ++r)
            sums[r][v] = hn::MulAdd(set(a[t * kPanel + row + r]), right, sums[r][v]);
        }
      }
      for (int r = 0; r < kRows; ++r) {
        for (int64_t v = 0; v < kVectors; ++v)
          store(sums[r][v], product + (row + r) * kPanel + col + v * kLanes);
      }
    }
  }
}

}  // namespace spinfer::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace spinfer::cpu {

HWY_EXPORT(widen_panel);
HWY_EXPORT(multiply_panels);

namespace {

constexpr int kPanel = 32;
constexpr int kPiece = 256;  // tokens: a panel of a piece takes 32 KiB

/// One piece of at most kPiece tokens.
void add_piece(DeviceContext& context, const InputStatisticsArgs& a, const Half* x, int tokens) {
  const int64_t panels = (a.k + kPanel - 1) / kPanel, stride = int64_t{kPanel} * tokens;
  float* wide = context.scratch.get<float>(size_t(panels * stride));
  context.pool.parallel_for(panels, [&](int64_t p) {
    float* panel = wide + p * stride;
    HWY_DYNAMIC_DISPATCH(widen_panel)(x, a.k, tokens, p * kPanel, panel);
    for (int64_t j = 0; j < std::min<int64_t>(kPanel, a.k - p * kPanel); ++j) {
      double sum = a.squares[p * kPanel + j];
      for (int64_t t = 0; t < tokens; ++t)
        sum += double(panel[t * kPanel + j]) * double(panel[t * kPanel + j]);
      a.squares[p * kPanel + j] = sum;
    }
  });
  if (!a.gram) return;
  context.pool.parallel_for(panels * panels, [&](int64_t pair) {
    const int64_t first_row = pair / panels * kPanel, first_col = pair % panels * kPanel;
    if (first_col > first_row) return;
    alignas(64) float product[kPanel * kPanel];
    HWY_DYNAMIC_DISPATCH(multiply_panels)
    (wide + pair / panels * stride, wide + pair % panels * stride, tokens, product);
    for (int64_t r = 0; r < kPanel && first_row + r < a.k; ++r) {
      float* out = a.gram + (first_row + r) * a.k + first_col;
      const int64_t cols = std::min<int64_t>(kPanel, first_row + r + 1 - first_col);
      for (int64_t c = 0; c < cols; ++c) out[c] += product[r * kPanel + c];
    }
  });
}

}  // namespace

void input_statistics(DeviceContext& context, const InputStatisticsArgs& a) {
  for (int begin = 0; begin < a.n; begin += kPiece)
    add_piece(context, a, a.x + int64_t{begin} * a.k, std::min(kPiece, a.n - begin));
}

}  // namespace spinfer::cpu
#endif
