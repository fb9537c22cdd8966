// Portable linear layers: the weight is walked once, 64 rows at a time, in fp32.
#include "kernels/cpu/linear.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "kernels/cpu/activation.h"

namespace spinfer::cpu {
namespace {

/// sums[r][t] += Σ w[row + r][k] · x[t][k] over the rows of one strip of group tiles.
void multiply_packed(const TcaBmeView& w, int64_t tile_row, const float* x, int n, float* sums) {
  const int64_t tiles = group_tiles(w.k);
  for (int64_t tile_col = 0; tile_col < tiles; ++tile_col) {
    const int64_t tile = tile_row * tiles + tile_col;
    const Half* value = w.values + w.offset(tile);
    for (int b = 0; b < kBitmapsPerGroupTile; ++b) {
      for (uint64_t bits = w.bitmaps[tile * kBitmapsPerGroupTile + b]; bits; bits &= bits - 1) {
        const TilePosition at = position_of({b, std::countr_zero(bits)});
        const float weight = to_float(*value++);
        const int64_t k = tile_col * kGroupTile + at.col;
        for (int t = 0; t < n; ++t) sums[at.row * n + t] += weight * x[t * w.k + k];
      }
    }
  }
}

void multiply_dense(const Linear& w, int64_t first_row, int64_t rows, const float* x, int n, float* sums) {
  for (int64_t r = 0; r < rows; ++r) {
    const Half* row = w.dense + (first_row + r) * w.k;
    for (int64_t k = 0; k < w.k; ++k) {
      const float weight = to_float(row[k]);
      for (int t = 0; t < n; ++t) sums[r * n + t] += weight * x[t * w.k + k];
    }
  }
}

/// store(row, token, W·x + b) for every element.
template <class Store>
void multiply(DeviceContext& context, const Linear& w, const Half* x, int n, const Store& store) {
  if (n == 0) return;
  float* wide = context.scratch.get<float>(size_t(n * w.k));
  for (int64_t i = 0; i < n * w.k; ++i) wide[i] = to_float(x[i]);
  context.pool.parallel_for(group_tiles(w.m), [&](int64_t tile_row) {
    const int64_t first = tile_row * kGroupTile, rows = std::min<int64_t>(kGroupTile, w.m - first);
    std::vector<float> sums(size_t(kGroupTile) * size_t(n), 0.0f);
    if (w.is_dense()) {
      multiply_dense(w, first, rows, wide, n, sums.data());
    } else {
      multiply_packed(w.packed, tile_row, wide, n, sums.data());
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float bias = w.bias ? to_float(w.bias[first + r]) : 0.0f;
      for (int t = 0; t < n; ++t) store(first + r, t, sums[size_t(r * n + t)] + bias);
    }
  });
}

}  // namespace

LinearWeight prepare_linear(DeviceContext& context, const HostMatrix& matrix, const Half* bias) {
  LinearWeight weight;
  if (const auto* dense = std::get_if<DenseMatrix>(&matrix)) {
    weight.view.m = dense->m;
    weight.view.k = dense->k;
    weight.view.dense = dense->data;
    weight.nonzeros = count_nonzeros(*dense, context.pool);
    weight.storage.push_back(dense->storage);
  } else {
    const auto& packed = std::get<TcaBmeMatrix>(matrix);
    weight.view.m = packed.view().m;
    weight.view.k = packed.view().k;
    weight.view.packed = packed.view();
    weight.nonzeros = packed.view().nonzeros;
    weight.storage.push_back(packed.storage());
  }
  const Linear& view = weight.view;
  weight.dense_bytes = 2 * view.m * view.k;
  weight.packed_bytes = view.is_dense() ? weight.dense_bytes : view.packed.bytes();
  weight.device_bytes = weight.packed_bytes;
  if (bias) {
    const auto copy = std::make_shared<const std::vector<Half>>(bias, bias + view.m);
    weight.view.bias = copy->data();
    weight.storage.push_back(copy);
  }
  return weight;
}

void linear(DeviceContext& context, const LinearArgs& a) {
  multiply(context, a.w, a.x, a.n, [&](int64_t row, int64_t token, float y) {
    const int64_t i = token * a.w.m + row;
    a.y[i] = to_half(activate(a.act, y) + (a.residual ? to_float(a.residual[i]) : 0.0f));
  });
}

void logits(DeviceContext& context, const LogitsArgs& a) {
  multiply(context, a.w, a.x, a.n,
           [&](int64_t row, int64_t token, float y) { a.logits[token * a.w.m + row] = y; });
}

}  // namespace spinfer::cpu
