// Sizes of the Hopper prefill kernel's tiles and of its shared memory, used by its plan and by the kernel.
#pragma once

#include "kernels/format/strip_stream.h"

namespace spinfer::cuda {

inline constexpr int kPrefillClusterBlocks = 2;  // they share each X tile
/// Warpgroups of a block that multiply, 64 rows each: with tiles of 256 tokens registers allow two, with 128
/// three, where shared memory does.
inline constexpr int kPrefillMaxGroups = 3;
inline constexpr int kPrefillSlots = 2;                       // chunks in flight, per strip
inline constexpr int kGroupStrips = kGroupTile / kStripRows;  // of a warpgroup; two warps share each
inline constexpr int kPrefillMaxStages = 8;
/// Of an X tile. Half a block: the same memory in smaller stages has more of X under way.
inline constexpr int kPrefillStageColumns = 32;
inline constexpr int kBlockStages = kBlockColumns / kPrefillStageColumns;
constexpr int prefill_cluster_rows(int groups) {
  return kPrefillClusterBlocks * groups * kGroupTile;
}

/// What follows the X stages in shared memory. The chunk slots, [strip][kPrefillSlots], come behind it.
struct alignas(128) PrefillBarriers {
  uint64_t x_full[kPrefillMaxStages];   ///< an X tile has arrived in this block
  uint64_t x_empty[kPrefillMaxStages];  ///< both blocks' warps are done with it
  uint64_t chunk_full[kPrefillMaxGroups * kGroupStrips][kPrefillSlots];
  uint64_t chunk_empty[kPrefillMaxGroups * kGroupStrips][kPrefillSlots];
};

/// A slot has a chunk's record, then its rows; what decoding the chunk's end touches lies within two rows
/// more.
constexpr int prefill_slot_bytes(int blocks, int rows) {
  return int(sizeof(ChunkHead)) + blocks * kMaskRowBytes + rows * kTrackRowBytes;
}
inline constexpr int kPrefillOverrun = 2 * kTrackRowBytes;

constexpr int prefill_stage_bytes(int n_tile) {
  return n_tile * kPrefillStageColumns * 2;
}
/// All of the dynamic shared memory but the X stages.
constexpr int prefill_fixed_bytes(int groups, int slot_bytes) {
  return int(sizeof(PrefillBarriers)) + groups * kGroupStrips * kPrefillSlots * slot_bytes + kPrefillOverrun;
}

}  // namespace spinfer::cuda
