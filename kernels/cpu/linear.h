// Linear layers on the CPU: dense fp16 and TCA-BME weights.
#pragma once

#include "kernels/cpu/context.h"
#include "kernels/cpu/linear_kernels.h"
#include "kernels/ops.h"

namespace spinfer::cpu {

/// The weight is used where it is in host memory; only the bias is copied. `gated` makes no difference.
LinearWeight prepare_linear(DeviceContext& context, const HostMatrix& matrix, const Half* bias,
                            bool gated = false);

LinearWeight prepare_from_device(DeviceContext& context, const Half* dense, int64_t m, int64_t k,
                                 double min_sparsity, const Half* bias, bool gated = false);

/// Results depend on the weight and the token alone: see linear_kernels.h. `level` is for tests; the default
/// is the best the CPU has.
void linear(DeviceContext& context, const LinearArgs& args);
void linear(DeviceContext& context, const LinearArgs& args, SimdLevel level);
void logits(DeviceContext& context, const LogitsArgs& args);
void logits(DeviceContext& context, const LogitsArgs& args, SimdLevel level);

}  // namespace spinfer::cpu
