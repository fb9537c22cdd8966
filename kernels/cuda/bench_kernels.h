// Kernels only benchmarks launch: the read bandwidth that floors are computed from, and a sampled reference.
#pragma once

#include <cstdint>

#include "kernels/half.h"

namespace spinfer::cuda {

class Context;

/// GB/s of the best of five passes that read 4 GiB (or half of what is free) once.
double measure_read_gbps(Context& context);

/// Relative error of y [n][m] against fp32 accumulation of w [m][k] · x [n][k], on up to 256 rows × 64 tokens
/// spread evenly. Infinite where y is not a number.
double sampled_error(Context& context, const Half* w, const Half* x, const Half* y, int64_t m, int64_t k,
                     int n);

}  // namespace spinfer::cuda
