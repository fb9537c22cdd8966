// A warp's way through a chunk of its strip that lies in shared memory as a whole, for the kernels of many
// tokens: two TCTiles at a time, as wgmma's A registers.
#pragma once

#include <cstddef>

#include "kernels/cuda/prefill_tile.h"
#include "kernels/cuda/strip_decoder.cuh"

namespace spinfer::cuda {

/// While a pair of tiles is assembled the values of the next are being loaded. Behind the chunk the masks are
/// zero, which loads what is there and moves nothing.
class ChunkReader {
 public:
  /// `slot` is the shared address of a prefill_slot_bytes.
  __device__ ChunkReader(const DecodeTables& tables, uint32_t slot, int blocks, int lane)
      : masks_(slot + uint32_t(sizeof(ChunkHead)) + 4 * lane), blocks_(blocks) {
    uint32_t start, first_row;
    asm volatile("ld.shared.u16 %0, [%1];" : "=r"(start) : "r"(slot + 2 * lane));
    first_row = load_shared(slot + uint32_t(offsetof(ChunkHead, first_row)));
    mask_ = mask_of(0);
    next_mask_ = mask_of(1);
    decoder_.tables = tables;
    decoder_.column = slot + uint32_t(prefill_slot_bytes(blocks, 0) + 4 * start_track(start));
    decoder_.position = start_position(start) - first_row % kPieceRows * 32;
    load(0);
  }
  /// The registers of pair 0, then 1, of `block`: a[0 … 3] and a[4 … 7] belong to a TCTile each. Blocks in
  /// order.
  __device__ void step(int block, int pair, uint32_t (&a)[8]) {
    windows_[0].assemble(decoder_.tables, a);
    windows_[1].assemble(decoder_.tables, a + 4);
    if (pair == 1) {
      mask_ = next_mask_;
      next_mask_ = mask_of(block + 2);
    }
    load(1 - pair);
  }

 private:
  __device__ uint32_t mask_of(int block) const {
    return block < blocks_ ? load_shared(masks_ + block * kTrackRowBytes) : 0u;
  }
  __device__ void load(int pair) {
    const uint32_t pairs = pairs_of(mask_, pair);
    decoder_.load(pairs, windows_[0]);
    decoder_.load(pairs >> 16, windows_[1]);
  }

  StripDecoder<256> decoder_;  // no chunk has more rows
  uint32_t masks_;
  int blocks_;
  uint32_t mask_, next_mask_;
  TileWindow windows_[2];
};

}  // namespace spinfer::cuda
