// Slices and stacks at tile borders: bitmaps and values are copied or shared as they are, offsets are
// rebased.
#include <algorithm>
#include <memory>
#include <vector>

#include "kernels/check.h"
#include "kernels/format/tca_bme.h"
#include "kernels/format/tca_bme_arrays.h"
#include "kernels/thread_pool.h"

namespace spinfer {
namespace {

using format::TcaBmeArrays;

void check_range(const char* what, int64_t begin, int64_t end, int64_t size) {
  const auto is_border = [size](int64_t at) { return at % kGroupTile == 0 || at == size; };
  check(0 <= begin && begin <= end && end <= size && is_border(begin) && is_border(end),
        "{} [{}, {}) cannot be cut from {}: the bounds must be multiples of {} or the end", what, begin, end,
        size, kGroupTile);
}

/// Tiles [first, first + count) of `source` on their way into another matrix.
struct Run {
  const TcaBmeView* source;
  int64_t first, count;
};

/// The runs' tiles one after the other as an m×k matrix, copied on all threads.
TcaBmeMatrix copied(const std::vector<Run>& runs, int64_t m, int64_t k, ThreadPool& pool) {
  struct Place {
    int64_t tile = 0, value = 0;
  };
  std::vector<Place> places(runs.size() + 1);
  for (size_t i = 0; i < runs.size(); ++i) {
    const auto& [source, first, count] = runs[i];
    places[i + 1] = {places[i].tile + count,
                     places[i].value + source->offset(first + count) - source->offset(first)};
  }
  const auto [tiles, nonzeros] = places.back();
  TcaBmeArrays target(m, k, nonzeros);
  pool.parallel_for(int64_t(runs.size()), [&](int64_t i) {
    const auto& [source, first, count] = runs[size_t(i)];
    const auto [tile, value] = places[size_t(i)];
    const int64_t begin = source->offset(first), end = source->offset(first + count);
    std::copy_n(source->bitmaps + first * kBitmapsPerGroupTile, count * kBitmapsPerGroupTile,
                target.bitmaps() + tile * kBitmapsPerGroupTile);
    std::copy_n(source->values + begin, end - begin, target.values() + value);
    for (int64_t t = 0; t < count; ++t)
      target.set_offset(tile + t, source->offset(first + t) - begin + value);
  });
  target.set_offset(tiles, nonzeros);
  return std::move(target).finish();
}

}  // namespace

TcaBmeMatrix slice_rows(const TcaBmeMatrix& matrix, int64_t begin, int64_t end) {
  const TcaBmeView& w = matrix.view();
  check_range("rows", begin, end, w.m);
  const int64_t tile_cols = group_tiles(w.k);
  const int64_t first = group_tiles(begin) * tile_cols, tiles = group_tiles(end - begin) * tile_cols;
  // The tiles lie together, so the slice shares bitmaps and values with the matrix; only its offsets are its
  // own.
  struct Shared {
    std::shared_ptr<const void> matrix;
    std::vector<uint32_t> offsets32;
    std::vector<uint64_t> offsets64;
  };
  auto shared = std::make_shared<Shared>();
  shared->matrix = matrix.storage();
  const int64_t origin = w.offset(first);
  TcaBmeView slice{end - begin, w.k, w.offset(first + tiles) - origin,
                   w.bitmaps + first * kBitmapsPerGroupTile, w.values + origin};
  const auto rebase = [&](auto& offsets) {
    offsets.resize(size_t(tiles) + 1);
    for (int64_t i = 0; i <= tiles; ++i) offsets[size_t(i)] = w.offset(first + i) - origin;
    return offsets.data();
  };
  if (fits_offsets32(slice.nonzeros)) {
    slice.offsets32 = rebase(shared->offsets32);
  } else {
    slice.offsets64 = rebase(shared->offsets64);
  }
  return {slice, std::move(shared)};
}

TcaBmeMatrix slice_cols(const TcaBmeMatrix& matrix, int64_t begin, int64_t end, ThreadPool& pool) {
  const TcaBmeView& w = matrix.view();
  check_range("columns", begin, end, w.k);
  const int64_t tile_cols = group_tiles(w.k), first_col = group_tiles(begin), cols = group_tiles(end - begin);
  std::vector<Run> runs;
  for (int64_t r = 0; r < group_tiles(w.m); ++r) runs.push_back({&w, r * tile_cols + first_col, cols});
  return copied(runs, w.m, end - begin, pool);
}

namespace {

/// True where the parts' bitmaps follow each other in memory, and so do their values: a packed file holds the
/// parts of one linear so.
bool lie_together(std::span<const TcaBmeMatrix> parts) {
  for (size_t i = 1; i < parts.size(); ++i) {
    const TcaBmeView &before = parts[i - 1].view(), &after = parts[i].view();
    if (before.bitmaps + before.tiles() * kBitmapsPerGroupTile != after.bitmaps) return false;
    if (before.values + before.nonzeros != after.values) return false;
  }
  return true;
}

/// The stack in place: only its offsets are its own.
TcaBmeMatrix stack_in_place(std::span<const TcaBmeMatrix> parts, int64_t m, int64_t nonzeros) {
  struct Shared {
    std::vector<std::shared_ptr<const void>> parts;
    std::vector<uint32_t> offsets32;
    std::vector<uint64_t> offsets64;
  };
  auto shared = std::make_shared<Shared>();
  TcaBmeView stack{m, parts[0].view().k, nonzeros, parts[0].view().bitmaps, parts[0].view().values};
  const auto rebase = [&](auto& offsets) {
    offsets.reserve(size_t(stack.tiles()) + 1);
    int64_t origin = 0;
    for (const TcaBmeMatrix& part : parts) {
      for (int64_t i = 0; i < part.view().tiles(); ++i) offsets.push_back(origin + part.view().offset(i));
      origin += part.view().nonzeros;
    }
    offsets.push_back(origin);
    return offsets.data();
  };
  if (fits_offsets32(nonzeros)) {
    stack.offsets32 = rebase(shared->offsets32);
  } else {
    stack.offsets64 = rebase(shared->offsets64);
  }
  for (const TcaBmeMatrix& part : parts) shared->parts.push_back(part.storage());
  return {stack, std::move(shared)};
}

}  // namespace

TcaBmeMatrix stack_rows(std::span<const TcaBmeMatrix> parts, ThreadPool& pool) {
  check(!parts.empty(), "stack_rows: no matrices given");
  int64_t m = 0, nonzeros = 0;
  bool aligned = true;  // no part but the last ends inside a tile
  for (const TcaBmeMatrix& part : parts) {
    check(part.view().k == parts[0].view().k, "stack_rows: matrices of {} and {} columns do not stack",
          parts[0].view().k, part.view().k);
    aligned = aligned && m % kGroupTile == 0;
    m += part.view().m;
    nonzeros += part.view().nonzeros;
  }
  const int64_t k = parts[0].view().k;
  if (!aligned) {
    const std::shared_ptr<Half[]> dense = format::allocate_array<Half>(m * k);
    int64_t row = 0;
    for (const TcaBmeMatrix& part : parts) {
      decode(part.view(), dense.get() + row * k, pool);
      row += part.view().m;
    }
    return encode({m, k, dense.get(), nullptr}, pool);
  }
  if (lie_together(parts)) return stack_in_place(parts, m, nonzeros);
  std::vector<Run> runs;
  const int64_t tile_cols = group_tiles(k);
  for (const TcaBmeMatrix& part : parts) {
    for (int64_t r = 0; r < group_tiles(part.view().m); ++r)
      runs.push_back({&part.view(), r * tile_cols, tile_cols});
  }
  return copied(runs, m, k, pool);
}

}  // namespace spinfer
