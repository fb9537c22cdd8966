// Tensor maps for the bulk copy engine (sm_90).
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/half.h"

namespace spinfer::cuda {

/// A map of x [n][k] for boxes of `columns` (64) × `rows` with 128-byte swizzle; what lies outside reads as
/// zero. Returns false, leaving the map alone, where the engine cannot read x: k no multiple of 8 or x not
/// 16-byte aligned.
bool make_activation_map(CUtensorMap& map, const Half* x, int n, int64_t k, int columns, int rows);

}  // namespace spinfer::cuda
