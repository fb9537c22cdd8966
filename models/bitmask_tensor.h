// Matrices as compressed-tensors stores them in its "sparse-bitmask" format (untrusted): "<name>.compressed"
// holds the nonzeros row after row, "<name>.bitmask" U8 [m][⌈k/8⌉] a bit for each element, the lowest first;
// "<name>.shape" and "<name>.row_offsets" repeat what these say and are not read.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/thread_pool.h"

namespace spinfer {

inline constexpr const char* kBitmaskSuffix = ".bitmask";
inline constexpr const char* kBitmaskValuesSuffix = ".compressed";

/// Spreads `values`, elements of `element_bytes`, to a dense m×k matrix with zeros. `bitmask` has m·⌈k/8⌉
/// bytes. Throws `Error` beginning with `label` where the bits set are not as many as the values, or stand
/// beyond k.
std::vector<std::byte> expand_bitmask(std::span<const std::byte> bitmask, std::span<const std::byte> values,
                                      int64_t m, int64_t k, int64_t element_bytes, ThreadPool& pool,
                                      const std::string& label);

}  // namespace spinfer
