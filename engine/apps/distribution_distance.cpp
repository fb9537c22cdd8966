#include "engine/apps/distribution_distance.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/check.h"

namespace spinfer {
namespace {

struct TokenDistance {
  double kl = 0;
  double delta_p = 0;
  bool same_top = false;
};

/// ln Σ exp(logit).
double log_sum_exp(std::span<const float> logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double(logit) - top);
  return top + std::log(sum);
}

TokenDistance token_distance(std::span<const float> reference, std::span<const float> model, int32_t target) {
  const double p_norm = log_sum_exp(reference), q_norm = log_sum_exp(model);
  TokenDistance distance;
  for (size_t i = 0; i < reference.size(); ++i) {
    const double log_p = double(reference[i]) - p_norm, log_q = double(model[i]) - q_norm;
    distance.kl += std::exp(log_p) * (log_p - log_q);
  }
  const auto t = size_t(target);
  distance.delta_p = std::exp(double(model[t]) - q_norm) - std::exp(double(reference[t]) - p_norm);
  distance.same_top = std::max_element(reference.begin(), reference.end()) - reference.begin() ==
                      std::max_element(model.begin(), model.end()) - model.begin();
  return distance;
}

}  // namespace

void DistributionDistance::add(std::span<const float> reference, std::span<const float> model,
                               std::span<const int32_t> targets, int64_t vocab, ThreadPool& pool) {
  std::vector<TokenDistance> distances(targets.size());
  pool.parallel_for(int64_t(targets.size()), [&](int64_t i) {
    const auto row = size_t(i * vocab);
    distances[size_t(i)] = token_distance(reference.subspan(row, size_t(vocab)),
                                          model.subspan(row, size_t(vocab)), targets[size_t(i)]);
  });
  for (const TokenDistance& distance : distances) {
    check(std::isfinite(distance.kl), "a model's logits are not all finite");
    ++tokens_;
    same_top_ += distance.same_top;
    kl_sum_ += distance.kl;
    kl_squares_ += distance.kl * distance.kl;
    delta_p_squares_ += distance.delta_p * distance.delta_p;
  }
}

double DistributionDistance::kl_error() const {
  const double n = double(tokens_);
  if (n < 2) return std::numeric_limits<double>::quiet_NaN();
  const double variance = std::max(0.0, (kl_squares_ - kl_sum_ * kl_sum_ / n) / (n - 1));
  return std::sqrt(variance / n);
}

double DistributionDistance::rms_delta_p() const {
  return std::sqrt(mean(delta_p_squares_));
}

}  // namespace spinfer
