// The CUDA ops of pruning. Contracts: kernels/pruning_ops.h.
#pragma once

#include "kernels/backend.h"

namespace spinfer::cuda {

void input_statistics(DeviceContext& context, const InputStatisticsArgs& args);
bool inverse_factor(DeviceContext& context, const InverseFactorArgs& args);
void sparsegpt(DeviceContext& context, const SparseGptArgs& args);

}  // namespace spinfer::cuda
