// The CPU's ops of pruning. Contracts: kernels/pruning_ops.h. No result depends on the number of threads.
#pragma once

#include "kernels/cpu/context.h"
#include "kernels/pruning_ops.h"

namespace spinfer::cpu {

void input_statistics(DeviceContext& context, const InputStatisticsArgs& args);
bool inverse_factor(DeviceContext& context, const InverseFactorArgs& args);
void sparsegpt(DeviceContext& context, const SparseGptArgs& args);

}  // namespace spinfer::cpu
