// A warp's way through a chunk of its tier of a strip that lies in shared memory as a whole, for the kernels
// of many tokens: a TCTile at a time, as wgmma's A registers.
#pragma once

#include <cstddef>

#include "kernels/cuda/prefill_tile.h"
#include "kernels/cuda/strip_decoder.cuh"

namespace spinfer::cuda {

/// Two tiles are on their way from shared memory while the two before are multiplied.
class ChunkReader {
 public:
  __device__ ChunkReader(const DecodeTables& tables, int lane, int tier)
      : stream_(uint32_t(lane * kStripTiers + tier)) {
    decoder_.tables = tables;
  }
  /// Goes to the first block of a chunk; `slot` is the shared address of a prefill_slot_bytes.
  __device__ void enter(uint32_t slot, int blocks) {
    uint32_t start;
    asm volatile("ld.shared.u16 %0, [%1];" : "=r"(start) : "r"(slot + 2 * stream_));
    const uint32_t first_row = load_shared(slot + uint32_t(offsetof(ChunkHead, first_row)));
    masks_ = slot + uint32_t(sizeof(ChunkHead)) + 4 * stream_;
    mask_ = load_shared(masks_);
    next_mask_ = load_shared(masks_ + kMaskRowBytes);  // of a chunk of one block: values, unused
    decoder_.column = slot + uint32_t(prefill_slot_bytes(blocks, 0) + 4 * start_track(start));
    decoder_.position = start_position(start) - first_row % kPieceRows * 32;
  }
  /// Goes to the chunk's next block.
  __device__ void next_block() {
    masks_ += kMaskRowBytes;
    mask_ = next_mask_;
    next_mask_ = load_shared(masks_ + kMaskRowBytes);  // behind the last block's: values, unused
  }
  /// Behind the last chunk: loads read what is there and move nothing.
  __device__ void finish() { mask_ = next_mask_ = 0; }
  /// Starts the loads of the block's tile kTile. Tiles in order.
  template <int kTile>
  __device__ void load() {
    const uint32_t pairs = mask_pairs(mask_, kTile / 2);
    decoder_.load(kTile % 2 ? pairs >> 16 : pairs, windows_[kTile % 2]);
  }
  /// The registers of tile kTile, one of the two loaded last.
  template <int kTile>
  __device__ void assemble(uint32_t* a) const {
    windows_[kTile % 2].assemble(decoder_.tables, a);
  }

 private:
  StripDecoder<256> decoder_;  // no chunk has more rows
  uint32_t stream_;            ///< among the masks of a block and the starts of a head
  uint32_t masks_ = 0;         ///< shared address of the lane's mask of the block
  uint32_t mask_ = 0, next_mask_ = 0;
  TileWindow windows_[2];
};

}  // namespace spinfer::cuda
