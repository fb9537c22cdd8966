// How far a model's next-token distributions are from a reference's, token by token: what `perplexity
// --compare` reports.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/thread_pool.h"

namespace spinfer {

/// Sums over the tokens added so far. P is the reference's distribution, Q the model's.
class DistributionDistance {
 public:
  /// Logits [targets][vocab] of the two; targets[i] is the token that came. Throws `Error` if one is not
  /// finite.
  void add(std::span<const float> reference, std::span<const float> model, std::span<const int32_t> targets,
           int64_t vocab, ThreadPool& pool);

  int64_t tokens() const { return tokens_; }
  double kl_divergence() const { return mean(kl_sum_); }  ///< mean of Σ P·ln(P/Q), nats
  double kl_error() const;                                ///< standard error of that mean; NaN of one token
  double top1_agreement() const { return mean(double(same_top_)); }
  double rms_delta_p() const;  ///< of Q(token) − P(token)

 private:
  double mean(double sum) const { return tokens_ > 0 ? sum / double(tokens_) : 0; }

  int64_t tokens_ = 0;
  int64_t same_top_ = 0;
  double kl_sum_ = 0, kl_squares_ = 0, delta_p_squares_ = 0;
};

}  // namespace spinfer
