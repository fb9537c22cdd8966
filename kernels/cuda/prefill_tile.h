// Sizes of the Hopper prefill kernel's tiles and of its shared memory, used by its plan and by the kernel.
#pragma once

#include "kernels/format/strip_stream.h"

namespace spinfer::cuda {

inline constexpr int kPrefillClusterBlocks = 2;  // they share each X tile
inline constexpr int kPrefillConsumers = 2;      // warpgroups that multiply, 64 rows each
inline constexpr int kPrefillClusterGroups = kPrefillClusterBlocks * kPrefillConsumers;
inline constexpr int kPrefillClusterRows = kPrefillClusterGroups * kGroupTile;  // 256
inline constexpr int kPrefillWarps = kPrefillConsumers * 4;                     // one strip each
inline constexpr int kPrefillMaxStages = 6;
/// y on its way out, per warpgroup: 16 tokens × 64 rows in fp32. Tokens lie 68 words apart: a warp's store of
/// one fragment register (four pairs of tokens, eight rows) then meets 32 banks.
inline constexpr int kPrefillStoreTokens = 16;
inline constexpr int kPrefillStoreStride = kGroupTile + 4;

/// What follows the X stages in shared memory, in this order: chunk slots, then this.
struct alignas(128) PrefillTail {
  float store[kPrefillConsumers][kPrefillStoreTokens * kPrefillStoreStride];
  uint32_t selectors[16];                 ///< nibble_selectors of 0 … 15
  uint64_t x_full[kPrefillMaxStages];     ///< an X tile has arrived in this block
  uint64_t x_empty[kPrefillMaxStages];    ///< both blocks' warps are done with it
  uint64_t half_full[kPrefillWarps][2];   ///< the chunk's first or last rows have arrived
  uint64_t half_empty[kPrefillWarps][2];  ///< its warp has decoded past them
};

/// One chunk of one strip in shared memory. The first rows of the next chunk come while the last of this one
/// are decoded, so that two half-empty slots do the work of two full ones: ranks and masks twice, rows once.
struct PrefillSlot {
  int mask_bytes = 0;  ///< ranks and mask words of one chunk
  int row_bytes =
      0;  ///< the highest chunk's rows, and the two the decoder's window may reach past a stream's end
  int split_rows = 0;  ///< rows of the first half

  constexpr int bytes() const { return 2 * mask_bytes + row_bytes; }
};
constexpr PrefillSlot prefill_slot(const StripShape& shape, int max_height) {
  return {kChunkRankBytes + 96 + shape.max_chunk_blocks() * kChunkRowBytes, (max_height + 2) * kChunkRowBytes,
          max_height / 2};
}
static_assert((kChunkRankBytes + 96) % 128 == 0);  // a lane's bank is its rank

constexpr int prefill_stage_bytes(int n_tile) {
  return n_tile * kBlockColumns * 2;
}
/// All but the X stages; 1024 bytes go to aligning the first stage to its swizzle.
constexpr int prefill_fixed_bytes(const PrefillSlot& slot) {
  return 1024 + kPrefillWarps * slot.bytes() + int(sizeof(PrefillTail));
}

}  // namespace spinfer::cuda
