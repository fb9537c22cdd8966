#include "models/pruning/wanda.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace spinfer {
namespace {

std::vector<double> norms_of(std::span<const double> squares) {
  std::vector<double> norms(squares.size());
  std::transform(squares.begin(), squares.end(), norms.begin(), [](double s) { return std::sqrt(s); });
  return norms;
}

double score(Half weight, double norm) {
  return std::abs(double(to_float(weight))) * norm;
}

void prune_row(Half* row, const std::vector<double>& norms, int64_t zeros, std::vector<double>& scores,
               std::vector<double>& order) {
  scores.resize(norms.size());
  std::transform(norms.begin(), norms.end(), row, scores.begin(),
                 [](double n, Half w) { return score(w, n); });
  order = scores;
  const auto last = order.begin() + (zeros - 1);
  std::nth_element(order.begin(), last, order.end());
  const double threshold = *last;
  int64_t equal =
      zeros - std::count_if(order.begin(), order.end(), [threshold](double s) { return s < threshold; });
  for (size_t i = 0; i < scores.size(); ++i)
    if (scores[i] < threshold || (scores[i] == threshold && equal-- > 0)) row[i] = Half{};
}

/// Σ value(row) in the order of the rows.
template <class T, class RowValue>
T sum_rows(int64_t m, ThreadPool& pool, const RowValue& value) {
  std::vector<T> values(static_cast<size_t>(m));
  pool.parallel_for(m, [&](int64_t row) { values[size_t(row)] = value(row); });
  return std::accumulate(values.begin(), values.end(), T{});
}

}  // namespace

void prune_wanda(Half* weights, int64_t m, int64_t k, std::span<const double> squares, double sparsity,
                 ThreadPool& pool) {
  const int64_t zeros = std::llround(sparsity * double(k));
  if (zeros == 0) return;
  const std::vector<double> norms = norms_of(squares);
  pool.run([&](int thread, int threads) {
    std::vector<double> scores, order;
    for (int64_t row = thread; row < m; row += threads)
      prune_row(weights + row * k, norms, zeros, scores, order);
  });
}

double wanda_score_sum(const Half* weights, int64_t m, int64_t k, std::span<const double> squares,
                       ThreadPool& pool) {
  const std::vector<double> norms = norms_of(squares);
  return sum_rows<double>(m, pool, [&](int64_t row) {
    double sum = 0;
    for (int64_t i = 0; i < k; ++i) sum += score(weights[row * k + i], norms[size_t(i)]);
    return sum;
  });
}

int64_t wanda_scores_above(const Half* weights, int64_t m, int64_t k, std::span<const double> squares,
                           double threshold, ThreadPool& pool) {
  const std::vector<double> norms = norms_of(squares);
  return sum_rows<int64_t>(m, pool, [&](int64_t row) {
    int64_t above = 0;
    for (int64_t i = 0; i < k; ++i) above += score(weights[row * k + i], norms[size_t(i)]) > threshold;
    return above;
  });
}

}  // namespace spinfer
