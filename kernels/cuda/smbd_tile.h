// One pipeline stage of the portable kernel in shared memory: a GroupTile and the X tile it meets.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/format/tca_bme.h"

namespace spinfer::cuda {

template <int kNTile>
struct alignas(16) SmbdStage {
  static constexpr int kXStride =
      kGroupTile + 8;  // 144-byte rows: eight rows of a matrix fall into different banks

  uint64_t bitmaps[kBitmapsPerGroupTile];
  /// A full tile, and the at most seven halves in front of it that 16-byte copies bring along, rounded up to
  /// 16 bytes.
  uint16_t values[kGroupTile * kGroupTile + 8];
  uint16_t x[kNTile * kXStride];  ///< [token][column of the tile]
};
static_assert(sizeof(SmbdStage<8>) % 16 == 0);

constexpr size_t smbd_shared_bytes(int n_tile) {
  switch (n_tile) {
    case 8:
      return 2 * sizeof(SmbdStage<8>);
    case 16:
      return 2 * sizeof(SmbdStage<16>);
    case 32:
      return 2 * sizeof(SmbdStage<32>);
    default:
      return 2 * sizeof(SmbdStage<64>);
  }
}

}  // namespace spinfer::cuda
