// Device-side material for GPU tests: guarded buffers, matrices with awkward masks, an fp32 reference.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "kernels/cuda/context.h"
#include "kernels/ops.h"

namespace spinfer::cuda {

enum class Mask { random, one_dense_row, one_dense_tile, one_empty_strip, one_lane };
std::string_view to_string(Mask mask);

/// Device memory between two guards. Reads that stray into a guard meet NaN; writes that do are found by
/// `intact`.
class GuardedHalves {
 public:
  /// All of it, contents too, is NaN (0xffff) at first.
  GuardedHalves(Context& context, int64_t size);
  Half* data() const { return data_; }
  int64_t size() const { return size_; }
  void fill_nan();
  void fill_random(uint64_t seed, float scale);
  std::vector<Half> download() const;
  bool intact() const;

 private:
  Context& context_;
  int64_t size_;
  std::shared_ptr<void> memory_;
  Half* data_;
};

/// dense [m][k]: random values, zeros as `mask` says (`sparsity` of what the mask leaves free).
void fill_masked(Context& context, Half* dense, int64_t m, int64_t k, Mask mask, double sparsity,
                 uint64_t seed);

/// The fp32-accumulated reference of `args`, from the dense weight `w` [m][k]: [n][m], not rounded.
std::vector<float> reference_linear(Context& context, const LinearArgs& args, const Half* w);

}  // namespace spinfer::cuda
