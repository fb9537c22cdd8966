// Masks of magnitude pruning. Internal to models/ and its tests.
#pragma once

#include <cstdint>

#include "kernels/half.h"
#include "kernels/thread_pool.h"
#include "models/checkpoint_tools.h"

namespace spinfer {

/// Zeroes, in place, the round(sparsity · count) smallest |w| of each row or of the whole matrix [m][k]; of
/// equal ones those that come first. Weights that are zero already count among them.
void prune_matrix(Half* weights, int64_t m, int64_t k, double sparsity, PruneScope scope, ThreadPool& pool);

}  // namespace spinfer
