// Finishes a dense product where cuBLASLt's own epilogue cannot.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/ops.h"

namespace spinfer::cuda {

/// y[n][m] = act(product[n][m] + bias[m]) + residual[n][m]; bias and residual may be null, residual may be y.
void finish_dense(cudaStream_t stream, const float* product, int n, int64_t m, const Half* bias,
                  Activation act, const Half* residual, Half* y);

}  // namespace spinfer::cuda
