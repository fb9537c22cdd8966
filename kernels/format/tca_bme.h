// TCA-BME, Tensor-Core-Aware Bitmap Encoding (SpInfer, EuroSys'25, section 4.2): the canonical format, as
// files hold it.
//
// W is M×K, fp16. Dimensions are padded to 64 with zeros; the true sizes are kept beside the data.
//   BitmapTile   8×8    one 64-bit word; bit 8·(row%8) + col%8 is set where the weight is nonzero (bit 0 is
//                       the least significant)
//   TCTile      16×16   2×2 BitmapTiles in column-major order: top left, bottom left, top right, bottom
//                       right. That is the order of the four A registers of mma.m16n8k16
//   GroupTile   64×64   4×4 TCTiles in row-major order: four strips of 16 rows, each 64 columns wide
//   matrix              GroupTiles in row-major order
//
//   bitmaps  uint64 [group tiles][64]
//   values   fp16   [nonzeros], in the order of the bits: group tile, bitmap tile, bit
//   offsets  uint32 [group tiles + 1], first value of each group tile (uint64 where nonzeros ≥ 2^32)
//
// Bytes: 4·(NGT+1) + 8·NBT + 2·NNZ. This header is the only place that knows the layout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>

#include "kernels/half.h"

namespace spinfer {

class ThreadPool;

inline constexpr int kBitmapTile = 8;
inline constexpr int kTcTile = 16;
inline constexpr int kGroupTile = 64;
inline constexpr int kBitmapsPerTcTile = 4;
inline constexpr int kBitmapsPerGroupTile = 64;

/// Largest M or K of a matrix from a file: products and sums of sizes then fit 64 bits, an index fits 32.
inline constexpr int64_t kMaxDimension = (int64_t{1} << 31) - kGroupTile;

constexpr int64_t padded(int64_t size) {
  return (size + kGroupTile - 1) / kGroupTile * kGroupTile;
}
constexpr int64_t group_tiles(int64_t size) {
  return padded(size) / kGroupTile;
}

/// Row and column inside a GroupTile, both in [0, 64).
struct TilePosition {
  int row;
  int col;
  friend constexpr bool operator==(TilePosition, TilePosition) = default;
};
/// Which bitmap of the GroupTile, in [0, 64), and which bit of it.
struct BitPosition {
  int bitmap;
  int bit;
  friend constexpr bool operator==(BitPosition, BitPosition) = default;
};

constexpr BitPosition bit_of(TilePosition p) {
  const int strip = p.row / kTcTile, tc = p.col / kTcTile;
  const int right = p.col / kBitmapTile % 2, bottom = p.row / kBitmapTile % 2;
  return {(strip * 4 + tc) * kBitmapsPerTcTile + right * 2 + bottom,
          p.row % kBitmapTile * kBitmapTile + p.col % kBitmapTile};
}
constexpr TilePosition position_of(BitPosition b) {
  const int tc_tile = b.bitmap / kBitmapsPerTcTile, part = b.bitmap % kBitmapsPerTcTile;
  return {tc_tile / 4 * kTcTile + part % 2 * kBitmapTile + b.bit / kBitmapTile,
          tc_tile % 4 * kTcTile + part / 2 * kBitmapTile + b.bit % kBitmapTile};
}

/// True where 4-byte group offsets suffice.
constexpr bool fits_offsets32(int64_t nonzeros) {
  return nonzeros < (int64_t{1} << 32);
}

/// The paper's size formula on padded dimensions (section 4.2), in bytes.
constexpr int64_t tca_bme_bytes(int64_t m, int64_t k, int64_t nonzeros) {
  const int64_t tiles = group_tiles(m) * group_tiles(k);
  return (fits_offsets32(nonzeros) ? 4 : 8) * (tiles + 1) + 8 * kBitmapsPerGroupTile * tiles + 2 * nonzeros;
}

/// A TCA-BME matrix somewhere in memory (host or device); owns nothing.
struct TcaBmeView {
  int64_t m = 0;  ///< true rows (out features)
  int64_t k = 0;  ///< true columns (in features)
  int64_t nonzeros = 0;
  const uint64_t* bitmaps = nullptr;    ///< [group_tiles(m) · group_tiles(k)][64]
  const Half* values = nullptr;         ///< [nonzeros]
  const uint32_t* offsets32 = nullptr;  ///< [tiles + 1], or null
  const uint64_t* offsets64 = nullptr;  ///< [tiles + 1], or null; exactly one of the two is set

  constexpr int64_t tiles() const { return group_tiles(m) * group_tiles(k); }
  constexpr int64_t offset(int64_t tile) const {
    return offsets32 ? int64_t(offsets32[tile]) : int64_t(offsets64[tile]);
  }
  constexpr int64_t bytes() const { return tca_bme_bytes(m, k, nonzeros); }
  constexpr double sparsity() const {
    return m > 0 && k > 0 ? 1.0 - double(nonzeros) / (double(m) * double(k)) : 0.0;
  }
};

/// A TCA-BME matrix in host memory and whatever keeps that memory alive (own vectors, a mapped file). Cheap
/// to copy.
class TcaBmeMatrix {
 public:
  TcaBmeMatrix() = default;
  TcaBmeMatrix(TcaBmeView view, std::shared_ptr<const void> storage)
      : view_(view), storage_(std::move(storage)) {}
  const TcaBmeView& view() const { return view_; }
  const std::shared_ptr<const void>& storage() const { return storage_; }

 private:
  TcaBmeView view_;
  std::shared_ptr<const void> storage_;
};

/// A dense row-major host matrix: element (row, col) at data[row * k + col].
struct DenseMatrix {
  int64_t m = 0;
  int64_t k = 0;
  const Half* data = nullptr;           ///< [m][k]
  std::shared_ptr<const void> storage;  ///< keeps data alive
};

/// Encodes `dense` ([m][k], row-major). ±0 become absent; NaN and infinity are kept as values.
/// `progress(done, total)` is called from one thread at a time with weight counts; may be empty.
TcaBmeMatrix encode(const DenseMatrix& dense, ThreadPool& pool,
                    const std::function<void(int64_t done, int64_t total)>& progress = {});

/// Writes the true m×k part into `dense` ([m][k], row-major), zeros included.
void decode(const TcaBmeView& matrix, Half* dense, ThreadPool& pool);
DenseMatrix decode(const TcaBmeView& matrix, ThreadPool& pool);

/// Throws `Error` saying what is wrong: sizes out of range, offsets not the running popcount of the bitmaps,
/// bits set in the padding, a value array of another length. `name` begins the message. The spans are what
/// the file holds.
void validate(const TcaBmeView& matrix, size_t bitmap_count, size_t value_count, size_t offset_count,
              const char* name);

/// Rows [begin, end) / columns [begin, end) as a matrix of their own, without re-encoding: bounds must be
/// multiples of 64 or the end of the matrix.
TcaBmeMatrix slice_rows(const TcaBmeMatrix& matrix, int64_t begin, int64_t end);
TcaBmeMatrix slice_cols(const TcaBmeMatrix& matrix, int64_t begin, int64_t end, ThreadPool& pool);

/// The matrices stacked along m (all of one k). Where a part other than the last has an m that is no multiple
/// of 64 the stack is re-encoded; where bitmaps and values of the parts lie one after the other in memory
/// they are shared.
TcaBmeMatrix stack_rows(std::span<const TcaBmeMatrix> parts, ThreadPool& pool);

/// Nonzeros of `dense`, counted on all threads.
int64_t count_nonzeros(const DenseMatrix& dense, ThreadPool& pool);

}  // namespace spinfer
