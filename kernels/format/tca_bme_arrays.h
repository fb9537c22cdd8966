// Host arrays of one TCA-BME matrix while it is being built. Internal to kernels/format and its tests.
#pragma once

#include <memory>
#include <utility>

#include "kernels/format/tca_bme.h"

namespace spinfer::format {

/// Memory that is not initialised (new Half[] would first write gigabytes of zeros on one thread); from 2 MiB
/// on huge pages where the system grants them: faulting in 4 KiB pages took longer than encoding, and
/// `linear` reads packed weights on 4 KiB pages a quarter slower. Throws std::bad_alloc.
std::shared_ptr<void> allocate_pages(size_t bytes);

template <class T>
std::shared_ptr<T[]> allocate_array(int64_t count) {
  const std::shared_ptr<void> memory = allocate_pages(size_t(count) * sizeof(T));
  return {memory, static_cast<T*>(memory.get())};
}

enum class OffsetWidth {
  by_nonzeros,
  bits64
};  ///< bits64 lets a test take the path of matrices ≥ 2^32 nonzeros

/// Owns the three arrays, uninitialised. Fill them, then call `finish`.
class TcaBmeArrays {
 public:
  /// Sizes are those of a matrix that is in memory already, so products cannot overflow. `bitmaps` may be
  /// handed in ([tiles][64]); if null they are allocated. Throws std::bad_alloc.
  TcaBmeArrays(int64_t m, int64_t k, int64_t nonzeros, OffsetWidth width = OffsetWidth::by_nonzeros,
               std::shared_ptr<uint64_t[]> bitmaps = nullptr);

  uint64_t* bitmaps() { return storage_->bitmaps.get(); }
  Half* values() { return storage_->values.get(); }
  void set_offset(int64_t tile, int64_t value) {
    if (storage_->offsets32) {
      storage_->offsets32[tile] = uint32_t(value);
    } else {
      storage_->offsets64[tile] = uint64_t(value);
    }
  }
  /// The matrix; the arrays live as long as it does.
  TcaBmeMatrix finish() && { return {view_, std::move(storage_)}; }

 private:
  struct Storage {
    std::shared_ptr<uint64_t[]> bitmaps;
    std::shared_ptr<Half[]> values;
    std::shared_ptr<uint32_t[]> offsets32;
    std::shared_ptr<uint64_t[]> offsets64;
  };
  TcaBmeView view_;
  std::shared_ptr<Storage> storage_;
};

/// `encode` with the width of the offsets given.
TcaBmeMatrix encode(const DenseMatrix& dense, ThreadPool& pool,
                    const std::function<void(int64_t done, int64_t total)>& progress, OffsetWidth width);

}  // namespace spinfer::format
