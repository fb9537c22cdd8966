// Linear layers on the CPU: dense fp16 and TCA-BME weights.
#pragma once

#include "kernels/cpu/context.h"
#include "kernels/ops.h"

namespace spinfer::cpu {

LinearWeight prepare_linear(DeviceContext& context, const HostMatrix& matrix, const Half* bias);
void linear(DeviceContext& context, const LinearArgs& args);
void logits(DeviceContext& context, const LogitsArgs& args);

}  // namespace spinfer::cpu
