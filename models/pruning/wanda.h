// Wanda (Sun et al. 2023): a weight counts |w| · ‖x‖₂, the norm of its input over the calibration text.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/half.h"
#include "kernels/thread_pool.h"

namespace spinfer {

/// Zeroes, in place, the round(sparsity · k) weights of each row of W [m][k] with the smallest
/// |w|·√squares[col], the first among equal ones; computed in fp64. squares: Σ x² of each input.
void prune_wanda(Half* weights, int64_t m, int64_t k, std::span<const double> squares, double sparsity,
                 ThreadPool& pool);

/// The sum of all scores of a matrix, and how many of them exceed a threshold: what OWL needs.
double wanda_score_sum(const Half* weights, int64_t m, int64_t k, std::span<const double> squares,
                       ThreadPool& pool);
int64_t wanda_scores_above(const Half* weights, int64_t m, int64_t k, std::span<const double> squares,
                           double threshold, ThreadPool& pool);

}  // namespace spinfer
