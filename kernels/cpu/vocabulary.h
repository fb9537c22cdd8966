// Passes over one row of logits, shared by sample and logprobs.
#pragma once

#include <cstdint>
#include <optional>

namespace spinfer::cpu {

/// The largest logit; nothing if one is NaN or +infinity, or none is finite.
std::optional<float> max_logit(const float* logits, int64_t vocab);

/// weights[i] = exp((logits[i] − max) / temperature), fp32.
void softmax_weights(const float* logits, int64_t vocab, float max, float temperature, float* weights);

/// Σ exp(logits[i] − max): pieces of 1024 terms in fp32, the pieces in double, so that 128k terms cost no
/// digits.
double softmax_sum(const float* logits, int64_t vocab, float max);

}  // namespace spinfer::cpu
