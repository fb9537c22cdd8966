// Drives the kernels of linear_kernels.h over a weight.
//
// Tokens are taken in panels, widened to fp32 once, that stay in the L2 cache while the weight passes.
// Threads take units of rows: 64 (a row of GroupTiles) of a packed weight, 16 of a dense one. Within a unit:
//   few tokens    packed: tile after tile, so bitmaps and values are read as two sequential streams;
//                 dense: whole rows
//   many tokens   16 rows × 512 columns are decoded (or taken from the dense weight) and multiplied with all
//                 tokens of the panel while they are in the L1 cache
// Sums live in acc[token][row][16 lanes] between pieces, so the pieces do not change the order of addition.
#include "kernels/cpu/linear.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "kernels/check.h"
#include "kernels/cpu/activation.h"

namespace spinfer::cpu {
namespace {

constexpr int kMaxPanelTokens = 64;
constexpr int64_t kPanelBytes = int64_t{1} << 20;  // of widened tokens; half of a current core's L2
constexpr int kManyTokens = 4;                     // from here on a strip is decoded for the whole panel
constexpr int64_t kChunkTiles = 8;  // 512 columns: 16 KiB of decoded strip, 8 KiB of four tokens
constexpr int64_t kChunkBlocks = kChunkTiles * kGroupTile / kLanes;
constexpr int64_t kWorthWaking =
    1 << 17;  // products; fewer take less time (8 µs) than waking the other threads
constexpr int kPanelHalves = kStripRows * kGroupTile;  // one strip of one GroupTile

inline void prefetch(const void* memory, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(memory) + i);
}

int panel_tokens(int n, int64_t padded_k) {
  const int64_t fit = std::clamp<int64_t>(kPanelBytes / (4 * padded_k), 4, kMaxPanelTokens) / 4 * 4;
  return int(std::min<int64_t>(n, fit));
}

/// What one thread needs besides the tokens.
struct ThreadBuffers {
  float* acc;        // [tokens][64][16]
  float* sums;       // [64]
  Half* panels;      // [kChunkTiles][4][16][16]
  Half* last;        // values of a tile at the end of the array, with slack behind
  int64_t* cursors;  // next value of each tile of the row of tiles
};

/// The tokens of a panel and one weight; `run_unit` multiplies a unit of rows.
class PanelProduct {
 public:
  PanelProduct(const LinearKernels& kernels, const Linear& w, const float* x, int64_t x_stride, int tokens)
      : kernels_(kernels), w_(w), x_(x), x_stride_(x_stride), tokens_(tokens) {}

  int unit_rows() const { return w_.is_dense() ? kStripRows : kGroupTile; }
  int64_t units() const { return (w_.m + unit_rows() - 1) / unit_rows(); }

  /// Calls store(row, token, W·x) for the rows of the unit.
  template <class Store>
  void run_unit(int64_t unit, ThreadBuffers& buffers, const Store& store) const {
    if (w_.is_dense()) {
      dense_strip(unit * kStripRows, buffers, store);
    } else if (tokens_ < kManyTokens) {
      packed_tile_row(unit, buffers, store);
    } else {
      packed_strips(unit, buffers, store);
    }
  }

 private:
  AccumulateArgs panel_args(const Half* panels, int rows, int64_t blocks, int64_t first_col, float* acc,
                            int64_t acc_rows) const {
    return {panels,  kLanes, kStripRows * kLanes, rows, blocks, x_ + first_col, x_stride_,
            tokens_, acc,    acc_rows * kLanes};
  }

  template <class Store>
  void finish(int64_t first_row, int rows, int acc_rows, ThreadBuffers& buffers, const Store& store) const {
    for (int t = 0; t < tokens_; ++t) {
      kernels_.sum_lanes(buffers.acc + int64_t{t} * acc_rows * kLanes, rows, buffers.sums);
      for (int r = 0; r < rows; ++r) store(first_row + r, t, buffers.sums[r]);
    }
  }

  template <class Store>
  void dense_strip(int64_t first_row, ThreadBuffers& buffers, const Store& store) const {
    const int rows = int(std::min<int64_t>(kStripRows, w_.m - first_row));
    std::fill_n(buffers.acc, tokens_ * kStripRows * kLanes, 0.0f);
    const Half* strip = w_.dense + first_row * w_.k;
    const int64_t blocks = w_.k / kLanes, step = tokens_ < kManyTokens ? blocks : kChunkBlocks;
    for (int64_t b = 0; b < blocks; b += step) {
      kernels_.accumulate({strip + b * kLanes, w_.k, kLanes, rows, std::min(step, blocks - b),
                           x_ + b * kLanes, x_stride_, tokens_, buffers.acc, kStripRows * kLanes});
    }
    if (const int64_t tail = w_.k % kLanes; tail > 0) {
      std::fill_n(buffers.panels, kStripRows * kLanes, Half{});
      for (int r = 0; r < rows; ++r) {
        std::copy_n(strip + r * w_.k + blocks * kLanes, tail, buffers.panels + r * kLanes);
      }
      kernels_.accumulate(panel_args(buffers.panels, rows, 1, blocks * kLanes, buffers.acc, kStripRows));
    }
    finish(first_row, rows, kStripRows, buffers, store);
  }

  /// Values [begin, end) with kValueSlack readable halves behind them.
  const Half* values(int64_t begin, int64_t end, ThreadBuffers& buffers) const {
    const TcaBmeView& p = w_.packed;
    if (end + kValueSlack <= p.nonzeros) return p.values + begin;
    std::fill(std::copy(p.values + begin, p.values + end, buffers.last),
              buffers.last + (end - begin) + kValueSlack, Half{});
    return buffers.last;
  }

  template <class Store>
  void packed_tile_row(int64_t tile_row, ThreadBuffers& buffers, const Store& store) const {
    const TcaBmeView& p = w_.packed;
    const int64_t tile_cols = group_tiles(p.k);
    std::fill_n(buffers.acc, tokens_ * kGroupTile * kLanes, 0.0f);
    for (int64_t tile_col = 0; tile_col < tile_cols; ++tile_col) {
      const int64_t tile = tile_row * tile_cols + tile_col;
      const uint64_t* bitmaps = p.bitmaps + tile * kBitmapsPerGroupTile;
      const Half* value = values(p.offset(tile), p.offset(tile + 1), buffers);
      for (int strip = 0; strip < kGroupTile / kStripRows; ++strip, bitmaps += kStripRows) {
        float* acc = buffers.acc + strip * kStripRows * kLanes;
        if (tokens_ <= kernels_.fused_tokens) {
          int64_t count = 0;
          for (int t = 0; t < tokens_; ++t)
            count = kernels_.accumulate_strip(bitmaps, value, x_ + t * x_stride_ + tile_col * kGroupTile,
                                              acc + t * kGroupTile * kLanes);
          value += count;
        } else {
          const int64_t ahead = (p.offset(tile + 1) - p.offset(tile)) / 4;  // of values, about a strip
          prefetch(bitmaps + kPrefetchBitmaps, kStripRows * sizeof(uint64_t));
          prefetch(value + kPrefetchValues, size_t(ahead) * sizeof(Half));
          value += kernels_.decode_strip(bitmaps, value, buffers.panels);
          kernels_.accumulate(panel_args(buffers.panels, kStripRows, kGroupTile / kLanes,
                                         tile_col * kGroupTile, acc, kGroupTile));
        }
      }
    }
    const int64_t first_row = tile_row * kGroupTile;
    const int rows = int(std::min<int64_t>(kGroupTile, p.m - first_row));
    if (tokens_ > kernels_.fused_tokens) return finish(first_row, rows, kGroupTile, buffers, store);
    for (int t = 0; t < tokens_; ++t) {
      for (int first = 0; first < rows; first += kStripRows) {
        kernels_.sum_strip(buffers.acc + (t * kGroupTile + first) * kLanes, buffers.sums);
        for (int r = 0; r < std::min(kStripRows, rows - first); ++r)
          store(first_row + first + r, t, buffers.sums[r]);
      }
    }
  }

  template <class Store>
  void packed_strips(int64_t tile_row, ThreadBuffers& buffers, const Store& store) const {
    const TcaBmeView& p = w_.packed;
    const int64_t tile_cols = group_tiles(p.k), first_tile = tile_row * tile_cols;
    for (int64_t c = 0; c < tile_cols; ++c) buffers.cursors[c] = p.offset(first_tile + c);
    for (int strip = 0; strip < kGroupTile / kStripRows; ++strip) {
      const int64_t row = tile_row * kGroupTile + strip * kStripRows;
      if (row >= p.m) break;
      std::fill_n(buffers.acc, tokens_ * kStripRows * kLanes, 0.0f);
      for (int64_t chunk = 0; chunk < tile_cols; chunk += kChunkTiles) {
        const int64_t tiles = std::min(kChunkTiles, tile_cols - chunk);
        for (int64_t c = chunk; c < chunk + tiles; ++c) {
          const uint64_t* bitmaps = p.bitmaps + (first_tile + c) * kBitmapsPerGroupTile + strip * kStripRows;
          const Half* value = values(buffers.cursors[c], p.offset(first_tile + c + 1), buffers);
          if (c + 2 < tile_cols) {
            prefetch(bitmaps + kPrefetchBitmaps, kStripRows * sizeof(uint64_t));
            const int64_t next = first_tile + c + 2;
            prefetch(p.values + buffers.cursors[c + 2],
                     size_t(p.offset(next + 1) - p.offset(next)) / 4 * sizeof(Half));
          }
          buffers.cursors[c] +=
              kernels_.decode_strip(bitmaps, value, buffers.panels + (c - chunk) * kPanelHalves);
        }
        kernels_.accumulate(panel_args(buffers.panels, kStripRows, tiles * kGroupTile / kLanes,
                                       chunk * kGroupTile, buffers.acc, kStripRows));
      }
      finish(row, int(std::min<int64_t>(kStripRows, p.m - row)), kStripRows, buffers, store);
    }
  }

  const LinearKernels& kernels_;
  const Linear& w_;
  const float* x_;  // [tokens][x_stride], zero from k on
  int64_t x_stride_;
  int tokens_;
};

/// All scratch of one call, cut from one allocation: the tokens of a panel, then each thread's buffers.
class Buffers {
 public:
  Buffers(Scratch& scratch, int threads, int tokens, int64_t padded_k)
      : padded_k_(padded_k), tokens_(tokens) {
    x_bytes_ = size_t(tokens) * size_t(padded_k) * sizeof(float);
    memory_ = scratch.get<std::byte>(x_bytes_ + size_t(threads) * thread_bytes());
  }
  float* x() { return reinterpret_cast<float*>(memory_); }
  ThreadBuffers thread(int index) {
    std::byte* at = memory_ + x_bytes_ + size_t(index) * thread_bytes();
    const auto take = [&at](size_t bytes) { return std::exchange(at, at + bytes); };
    ThreadBuffers b;
    b.acc = reinterpret_cast<float*>(take(acc_bytes()));
    b.sums = reinterpret_cast<float*>(take(kSumBytes));
    b.panels = reinterpret_cast<Half*>(take(kPanelsBytes));
    b.last = reinterpret_cast<Half*>(take(kLastBytes));
    b.cursors = reinterpret_cast<int64_t*>(take(cursor_bytes()));
    return b;
  }

 private:
  static constexpr size_t kSumBytes = kGroupTile * sizeof(float);
  static constexpr size_t kPanelsBytes = size_t(kChunkTiles) * kPanelHalves * sizeof(Half);
  static constexpr size_t kLastBytes = (kGroupTile * kGroupTile + kValueSlack) * sizeof(Half);
  static_assert(kSumBytes % 64 == 0 && kPanelsBytes % 64 == 0 && kLastBytes % 64 == 0,
                "buffers start on cache lines");

  size_t acc_bytes() const { return size_t(tokens_) * kGroupTile * kLanes * sizeof(float); }
  size_t cursor_bytes() const { return (size_t(padded_k_ / kGroupTile) * sizeof(int64_t) + 63) / 64 * 64; }
  size_t thread_bytes() const { return acc_bytes() + kSumBytes + kPanelsBytes + kLastBytes + cursor_bytes(); }

  std::byte* memory_;
  int64_t padded_k_;
  int tokens_;
  size_t x_bytes_;
};

/// store(row, token, W·x + b) for every element, from all threads.
template <class Store>
void multiply(DeviceContext& context, const LinearKernels& kernels, const Linear& w, const Half* x, int n,
              const Store& store) {
  if (n <= 0) return;
  const int64_t padded_k = padded(w.k);
  const int panel = panel_tokens(n, padded_k);
  Buffers buffers(context.scratch, context.pool.threads(), panel, padded_k);
  for (int first = 0; first < n; first += panel) {
    const int tokens = std::min(panel, n - first);
    for (int t = 0; t < tokens; ++t) {
      float* wide = buffers.x() + t * padded_k;
      kernels.widen(x + (first + t) * w.k, w.k, wide);
      std::fill(wide + w.k, wide + padded_k, 0.0f);
    }
    const PanelProduct product(kernels, w, buffers.x(), padded_k, tokens);
    std::atomic<int64_t> next{0};
    const auto work = [&](int thread, int) {
      ThreadBuffers mine = buffers.thread(thread);
      for (int64_t unit; (unit = next.fetch_add(1, std::memory_order_relaxed)) < product.units();) {
        product.run_unit(unit, mine, [&](int64_t row, int token, float sum) {
          store(row, first + token, sum + (w.bias ? to_float(w.bias[row]) : 0.0f));
        });
      }
    };
    if (w.m * w.k * tokens < kWorthWaking) {
      work(0, 1);
    } else {
      context.pool.run(work);
    }
  }
}

}  // namespace

LinearWeight prepare_linear(DeviceContext& context, const HostMatrix& matrix, const Half* bias, bool) {
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

LinearWeight prepare_from_device(DeviceContext& context, const Half* dense, int64_t m, int64_t k,
                                 double min_sparsity, const Half* bias, bool) {
  const DenseMatrix source{m, k, dense, nullptr};
  const double nonzeros = double(count_nonzeros(source, context.pool));
  if (nonzeros <= (1 - min_sparsity) * double(m) * double(k))
    return prepare_linear(context, encode(source, context.pool), bias);
  const std::shared_ptr<Half[]> halves(new Half[size_t(m * k)]);
  std::copy_n(dense, m * k, halves.get());
  return prepare_linear(context, DenseMatrix{m, k, halves.get(), halves}, bias);
}

void linear(DeviceContext& context, const LinearArgs& a, SimdLevel level) {
  check(!a.norm_of_x && !a.norm_of_y, "linear {}×{}: the CPU defers no norm", a.w.m, a.w.k);
  multiply(context, linear_kernels(level), a.w, a.x, a.n, [&](int64_t row, int64_t token, float y) {
    const int64_t i = token * a.w.m + row;
    a.y[i] = to_half(activate(a.act, y) + (a.residual ? to_float(a.residual[i]) : 0.0f));
  });
}
void linear(DeviceContext& context, const LinearArgs& a) {
  linear(context, a, best_simd_level());
}

void logits(DeviceContext& context, const LogitsArgs& a, SimdLevel level) {
  multiply(context, linear_kernels(level), a.w, a.x, a.n,
           [&](int64_t row, int64_t token, float y) { a.logits[token * a.w.m + row] = y; });
}
void logits(DeviceContext& context, const LogitsArgs& a) {
  logits(context, a, best_simd_level());
}

}  // namespace spinfer::cpu
