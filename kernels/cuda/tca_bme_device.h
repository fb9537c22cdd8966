// TCA-BME matrices in device memory, in the canonical order: encode, decode, upload, random weights for
// benchmarks.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/format/tca_bme.h"

namespace spinfer::cuda {

class Context;

/// A canonical TCA-BME matrix on the device. `view` has device pointers; the arrays live as long as
/// `storage`. Value arrays are followed by at least 16 readable bytes.
struct DeviceTcaBme {
  TcaBmeView view;
  std::vector<std::shared_ptr<const void>> storage;
};

DeviceTcaBme upload_tca_bme(Context& context, const TcaBmeView& host);

/// Encodes dense [m][k] fp16 device memory; the result is bit for bit what `spinfer::encode` makes of it.
DeviceTcaBme encode_on_device(Context& context, const Half* dense, int64_t m, int64_t k);

/// Writes rows [begin, end) of the matrix, zeros included, to `dense` [end − begin][k]. `begin` must be a
/// multiple of 64.
void decode_on_device(Context& context, const TcaBmeView& device, int64_t begin, int64_t end, Half* dense);

/// Fills [m][k] with Gaussian values of standard deviation `scale`, each element zero with probability
/// `sparsity`. The same (seed, index) gives the same value on every GPU.
void fill_random_sparse(Context& context, Half* dense, int64_t m, int64_t k, double sparsity, float scale,
                        uint64_t seed);

}  // namespace spinfer::cuda
