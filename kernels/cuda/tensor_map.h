// Tensor maps for the bulk copy engine (sm_90).
#pragma once

#include <cuda.h>

#include <array>
#include <cstdint>

#include "kernels/half.h"

namespace spinfer::cuda {

/// A map of x [n][k] for boxes of kBlockColumns × `rows` with 128-byte swizzle; what lies outside reads as
/// zero. Returns false, leaving the map alone, where the engine cannot read x: k no multiple of 8 or x not
/// 16-byte aligned.
bool make_activation_map(CUtensorMap& map, const Half* x, int n, int64_t k, int rows);

/// A map of a three-dimensional fp16 tensor, the first dimension contiguous; `strides` in bytes, of the
/// second and third. A box's first dimension is 64 (128 bytes), swizzled; what lies outside reads as zero.
/// `what` is for error messages.
CUtensorMap make_swizzled_map(const char* what, const void* base, const std::array<int64_t, 3>& sizes,
                              const std::array<int64_t, 2>& strides, const std::array<int, 3>& box);

}  // namespace spinfer::cuda
