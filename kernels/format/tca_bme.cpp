// Encode and decode. Both work on one 64×64 GroupTile at a time; tiles at the right and bottom edge go
// through a zero-padded copy, so there is one code path for all sizes.
#include "kernels/format/tca_bme.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <numeric>
#include <vector>

#include "kernels/check.h"
#include "kernels/format/tca_bme_arrays.h"
#include "kernels/thread_pool.h"

namespace spinfer {
namespace {

constexpr bool index_maps_are_inverse() {
  for (int row = 0; row < kGroupTile; ++row) {
    for (int col = 0; col < kGroupTile; ++col) {
      const TilePosition p{row, col};
      const BitPosition b = bit_of(p);
      if (b.bitmap < 0 || b.bitmap >= kBitmapsPerGroupTile || b.bit < 0 || b.bit >= 64) return false;
      if (position_of(b) != p) return false;
    }
  }
  return true;
}
static_assert(index_maps_are_inverse());

/// PTX ISA, "Matrix fragments for mma.m16n8k16", A: lane l holds halves a0…a7, two to a register; a_i lies at
/// row l/4 (+8 for i = 2, 3, 6, 7) and column 2·(l%4) + i%2 (+8 for i ≥ 4).
constexpr bool bitmaps_are_mma_registers() {
  for (int tc_tile = 0; tc_tile < kBitmapsPerGroupTile / kBitmapsPerTcTile; ++tc_tile) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 8; ++i) {
        const int row = tc_tile / 4 * kTcTile + lane / 4 + (i % 4 >= 2 ? 8 : 0);
        const int col = tc_tile % 4 * kTcTile + lane % 4 * 2 + i % 2 + (i >= 4 ? 8 : 0);
        const BitPosition expected{tc_tile * kBitmapsPerTcTile + i / 2, 2 * lane + i % 2};
        if (bit_of({row, col}) != expected) return false;
      }
    }
  }
  return true;
}
static_assert(bitmaps_are_mma_registers(),
              "bitmap r of a TCTile must be A register r, bits 2l and 2l+1 lane l's");

constexpr int kTileWeights = kGroupTile * kGroupTile;

/// A 64×64 tile of a row-major matrix: in place, or zero-padded in `copy` where the matrix ends inside it.
struct TileRef {
  const Half* data;
  int64_t stride;
};
TileRef tile_at(const DenseMatrix& dense, int64_t row, int64_t col, Half* copy) {
  const Half* source = dense.data + row * dense.k + col;
  const int64_t rows = std::min<int64_t>(kGroupTile, dense.m - row);
  const int64_t cols = std::min<int64_t>(kGroupTile, dense.k - col);
  if (rows == kGroupTile && cols == kGroupTile) return {source, dense.k};
  std::fill_n(copy, kTileWeights, Half{});
  for (int64_t r = 0; r < rows; ++r) std::copy_n(source + r * dense.k, cols, copy + r * kGroupTile);
  return {copy, kGroupTile};
}

/// Bit i of the result is set where halves[i] is neither +0 nor −0, for four halves.
inline uint64_t nonzero_bits4(const Half* halves) {
  uint64_t lanes;
  std::memcpy(&lanes, halves, sizeof(lanes));
  const uint64_t magnitude = lanes & 0x7fff7fff7fff7fffu;
  const uint64_t nonzero = ((magnitude + 0x7fff7fff7fff7fffu) & 0x8000800080008000u) >> 15;
  // Bits 0, 16, 32, 48 → 48…51; the other partial products stay below bit 36 or overflow.
  return nonzero * (uint64_t{1} << 48 | uint64_t{1} << 33 | uint64_t{1} << 18 | 8) >> 48 & 15;
}

/// Writes the tile's 64 bitmaps; returns its nonzeros.
int make_bitmaps(TileRef tile, uint64_t* bitmaps) {
  int count = 0;
  for (int b = 0; b < kBitmapsPerGroupTile; ++b) {
    const TilePosition corner = position_of({b, 0});
    const Half* row = tile.data + corner.row * tile.stride + corner.col;
    uint64_t bitmap = 0;
    for (int r = 0; r < kBitmapTile; ++r, row += tile.stride) {
      bitmap |= (nonzero_bits4(row) | nonzero_bits4(row + 4) << 4) << (8 * r);
    }
    bitmaps[b] = bitmap;
    count += std::popcount(bitmap);
  }
  return count;
}

/// Writes the tile's nonzeros in bitmap order. `out` has room for one half more than they are: the store is
/// unconditional, only the step depends on the bit (a branch would be mispredicted every other weight).
int gather_values(TileRef tile, Half* out) {
  int n = 0;
  for (int b = 0; b < kBitmapsPerGroupTile; ++b) {
    const TilePosition corner = position_of({b, 0});
    const Half* row = tile.data + corner.row * tile.stride + corner.col;
    for (int r = 0; r < kBitmapTile; ++r, row += tile.stride) {
      for (int c = 0; c < kBitmapTile; ++c) {
        out[n] = row[c];
        n += !is_zero(row[c]);
      }
    }
  }
  return n;
}

/// Sums the weights of both passes; a pass counts for half.
class Progress {
 public:
  Progress(const std::function<void(int64_t, int64_t)>& report, int64_t total)
      : report_(report), total_(total) {}
  void add(int64_t weights) {
    if (!report_) return;
    std::lock_guard lock(mutex_);
    done_ += weights;
    report_(done_ / 2, total_);
  }

 private:
  const std::function<void(int64_t, int64_t)>& report_;
  std::mutex mutex_;
  int64_t done_ = 0;
  int64_t total_;
};

int64_t rows_of_tile_row(int64_t m, int64_t tile_row) {
  return std::min<int64_t>(kGroupTile, m - tile_row * kGroupTile);
}

void decode_tile(const TcaBmeView& matrix, int64_t tile, Half* out /* [64][64] */) {
  std::fill_n(out, kTileWeights, Half{});
  const uint64_t* bitmaps = matrix.bitmaps + tile * kBitmapsPerGroupTile;
  const Half* value = matrix.values + matrix.offset(tile);
  for (int b = 0; b < kBitmapsPerGroupTile; ++b) {
    const TilePosition corner = position_of({b, 0});
    Half* block = out + corner.row * kGroupTile + corner.col;
    for (uint64_t bits = bitmaps[b]; bits != 0; bits &= bits - 1) {
      const int bit = std::countr_zero(bits);
      block[bit / kBitmapTile * kGroupTile + bit % kBitmapTile] = *value++;
    }
  }
}

}  // namespace

namespace format {

std::shared_ptr<void> allocate_pages(size_t bytes) {
  constexpr size_t kHugePage = size_t{2} << 20, kLine = 64;
  const size_t rounded = std::max(kLine, (bytes + kLine - 1) / kLine * kLine);
  if (bytes < kHugePage) {
    void* memory = std::aligned_alloc(kLine, rounded);
    if (!memory) throw std::bad_alloc();
    return {memory, [](void* pages) { std::free(pages); }};
  }
  // Fresh from the system, not from malloc: memory that was used before may be on small pages already.
  const size_t mapped = rounded + kHugePage;  // room to align; what is not touched takes no memory
  void* memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  void* aligned = memory;
  size_t space = mapped;
  std::align(kHugePage, rounded, aligned, space);
#ifdef MADV_HUGEPAGE
  madvise(aligned, rounded, MADV_HUGEPAGE);  // a hint
#endif
  return {aligned, [memory, mapped](void*) { munmap(memory, mapped); }};
}

TcaBmeArrays::TcaBmeArrays(int64_t m, int64_t k, int64_t nonzeros, OffsetWidth width,
                           std::shared_ptr<uint64_t[]> bitmaps)
    : storage_(std::make_shared<Storage>()) {
  view_.m = m;
  view_.k = k;
  view_.nonzeros = nonzeros;
  const int64_t tiles = view_.tiles();
  storage_->bitmaps = bitmaps ? std::move(bitmaps) : allocate_array<uint64_t>(tiles * kBitmapsPerGroupTile);
  storage_->values = allocate_array<Half>(nonzeros);
  if (width == OffsetWidth::by_nonzeros && fits_offsets32(nonzeros)) {
    storage_->offsets32 = allocate_array<uint32_t>(tiles + 1);
  } else {
    storage_->offsets64 = allocate_array<uint64_t>(tiles + 1);
  }
  view_.bitmaps = storage_->bitmaps.get();
  view_.values = storage_->values.get();
  view_.offsets32 = storage_->offsets32.get();
  view_.offsets64 = storage_->offsets64.get();
}

TcaBmeMatrix encode(const DenseMatrix& dense, ThreadPool& pool,
                    const std::function<void(int64_t done, int64_t total)>& progress, OffsetWidth width) {
  check(dense.m >= 0 && dense.k >= 0, "encode: a matrix of {}×{} does not exist", dense.m, dense.k);
  const int64_t tile_rows = group_tiles(dense.m), tile_cols = group_tiles(dense.k);
  Progress counter(progress, dense.m * dense.k);

  // Pass 1: bitmaps and the nonzeros of each tile, from which the places of the values follow.
  std::shared_ptr<uint64_t[]> bitmaps =
      allocate_array<uint64_t>(tile_rows * tile_cols * kBitmapsPerGroupTile);
  std::vector<int64_t> offsets(size_t(tile_rows * tile_cols) + 1);
  pool.parallel_for(tile_rows, [&](int64_t tile_row) {
    Half copy[kTileWeights];
    for (int64_t tile_col = 0; tile_col < tile_cols; ++tile_col) {
      const int64_t tile = tile_row * tile_cols + tile_col;
      const TileRef source = tile_at(dense, tile_row * kGroupTile, tile_col * kGroupTile, copy);
      offsets[size_t(tile) + 1] = make_bitmaps(source, bitmaps.get() + tile * kBitmapsPerGroupTile);
    }
    counter.add(rows_of_tile_row(dense.m, tile_row) * dense.k);
  });
  std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());

  // Pass 2: values. They are gathered in a buffer of the thread, because gather_values writes past the tile's
  // end.
  TcaBmeArrays arrays(dense.m, dense.k, offsets.back(), width, std::move(bitmaps));
  pool.parallel_for(tile_rows, [&](int64_t tile_row) {
    Half copy[kTileWeights], gathered[kTileWeights + 1];
    for (int64_t tile_col = 0; tile_col < tile_cols; ++tile_col) {
      const int64_t tile = tile_row * tile_cols + tile_col;
      const int count =
          gather_values(tile_at(dense, tile_row * kGroupTile, tile_col * kGroupTile, copy), gathered);
      std::copy_n(gathered, count, arrays.values() + offsets[size_t(tile)]);
    }
    counter.add(rows_of_tile_row(dense.m, tile_row) * dense.k);
  });
  for (size_t tile = 0; tile < offsets.size(); ++tile) arrays.set_offset(int64_t(tile), offsets[tile]);
  return std::move(arrays).finish();
}

}  // namespace format

TcaBmeMatrix encode(const DenseMatrix& dense, ThreadPool& pool,
                    const std::function<void(int64_t done, int64_t total)>& progress) {
  return format::encode(dense, pool, progress, format::OffsetWidth::by_nonzeros);
}

void decode(const TcaBmeView& matrix, Half* dense, ThreadPool& pool) {
  const int64_t tile_cols = group_tiles(matrix.k);
  pool.parallel_for(group_tiles(matrix.m), [&](int64_t tile_row) {
    Half tile[kTileWeights];
    const int64_t rows = rows_of_tile_row(matrix.m, tile_row);
    for (int64_t tile_col = 0; tile_col < tile_cols; ++tile_col) {
      decode_tile(matrix, tile_row * tile_cols + tile_col, tile);
      const int64_t cols = std::min<int64_t>(kGroupTile, matrix.k - tile_col * kGroupTile);
      Half* target = dense + tile_row * kGroupTile * matrix.k + tile_col * kGroupTile;
      for (int64_t r = 0; r < rows; ++r) std::copy_n(tile + r * kGroupTile, cols, target + r * matrix.k);
    }
  });
}

DenseMatrix decode(const TcaBmeView& matrix, ThreadPool& pool) {
  const std::shared_ptr<Half[]> data = format::allocate_array<Half>(matrix.m * matrix.k);
  decode(matrix, data.get(), pool);
  return {matrix.m, matrix.k, data.get(), data};
}

int64_t count_nonzeros(const DenseMatrix& dense, ThreadPool& pool) {
  std::atomic<int64_t> total{0};
  pool.parallel_for(dense.m, [&](int64_t row) {
    const Half *data = dense.data + row * dense.k, *end = data + dense.k;
    int64_t count = 0;
    while (data != end) {  // counted in 16 bits, eight at a time
      const Half* stop = data + std::min<int64_t>(end - data, 1 << 15);
      uint16_t some = 0;
      for (; data != stop; ++data) some += !is_zero(*data);
      count += some;
    }
    total.fetch_add(count, std::memory_order_relaxed);
  });
  return total;
}

}  // namespace spinfer
