// A strip's pieces (kernels/format/strip_stream.h) in a ring of shared memory: kRingRows + 1 rows of values,
// the last of which repeats the first, for windows that begin in the one before.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx_hopper.cuh"
#include "kernels/format/strip_stream.h"

namespace spinfer::cuda {

/// 1, or 32 for compute-sanitizer's racecheck. It follows a lane's arrival at a barrier for that lane's own
/// accesses only, and of the barriers that lanes of a warp test in one instruction only the first lane's. So
/// for it all lanes tell that their warp is done with a slot, not one of them behind a __syncwarp; and those
/// of a feeding warp look whether slots are free in turn, not all at once.
__device__ inline int lanes_followed(bool for_racecheck) {
  return for_racecheck ? 32 : 1;
}

/// By one lane: the piece at `from` into a slot of the ring at shared address `ring`; `full` is the slot's
/// barrier.
__device__ inline void copy_piece(uint32_t ring, uint32_t slot, uint32_t full, const uint8_t* from,
                                  uint64_t policy) {
  // Into the last slot a row more: the ring's last row repeats its first.
  const uint32_t bytes = slot == kRingPieces - 1 ? kPieceBytes + kTrackRowBytes : kPieceBytes;
  ptx::barrier_arrive_expect(full, bytes);
  ptx::copy_bulk(ring + slot * kPieceBytes, from, bytes, full, policy);
}

}  // namespace spinfer::cuda
