// Sizes of the Hopper prefill kernel's tiles and of its shared memory, used by its plan and by the kernel.
#pragma once

#include "kernels/format/strip_stream.h"

namespace spinfer::cuda {

inline constexpr int kPrefillClusterBlocks = 2;  // they share each X tile
/// Warpgroups of a block that multiply, 64 rows each: as many as registers allow.
constexpr int prefill_groups(int n_tile) {
  return n_tile == 256 ? 2 : 3;
}
inline constexpr int kPrefillMaxGroups = 3;
inline constexpr int kGroupStrips = kGroupTile / kStripRows;  // of a warpgroup; two warps share each
constexpr int prefill_cluster_rows(int n_tile) {
  return kPrefillClusterBlocks * prefill_groups(n_tile) * kGroupTile;
}

/// X tiles of 64 columns under way: as many as there is room for.
constexpr int prefill_stages(int n_tile) {
  return n_tile == 256 ? 4 : 6;
}
inline constexpr int kPrefillMaxStages = 6;
constexpr int prefill_stage_bytes(int n_tile) {
  return n_tile * kBlockColumns * 2;
}

/// One strip's values and records on their way. The ring's last row repeats its first, for windows that begin
/// in the one before.
struct alignas(128) PrefillStrip {
  uint8_t ring[kRingRows + 1][kTrackRowBytes];
  uint8_t record[2][chunk_record_bytes(kMaxChunkBlocks)];
};

/// What follows the X stages in shared memory; the strips come behind it. What is full has arrived in this
/// block. X is empty when both blocks' warps are done with it, a piece and a record when both tiers' are.
struct alignas(128) PrefillBarriers {
  uint64_t x_full[kPrefillMaxStages];
  uint64_t x_empty[kPrefillMaxStages];
  uint64_t piece_full[kPrefillMaxGroups * kGroupStrips][kRingPieces];
  uint64_t piece_empty[kPrefillMaxGroups * kGroupStrips][kRingPieces];
  uint64_t record_full[kPrefillMaxGroups * kGroupStrips][2];
  uint64_t record_empty[kPrefillMaxGroups * kGroupStrips][2];
};

/// All of the dynamic shared memory. Behind the last record lanes read on, by a row of masks.
constexpr int prefill_shared_bytes(int n_tile) {
  return prefill_stages(n_tile) * prefill_stage_bytes(n_tile) + int(sizeof(PrefillBarriers)) +
         prefill_groups(n_tile) * kGroupStrips * int(sizeof(PrefillStrip)) + kMaskRowBytes;
}

}  // namespace spinfer::cuda
