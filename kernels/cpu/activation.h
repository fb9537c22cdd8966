// Activation functions in fp32, for epilogues and gated layers.
#pragma once

#include <cmath>

#include "kernels/ops.h"

namespace spinfer::cpu {

inline float activate(Activation act, float x) {
  switch (act) {
    case Activation::none:
      return x;
    case Activation::relu:
      return x < 0 ? 0.0f : x;  // keeps NaN
    case Activation::gelu:
      return 0.5f * x * (1.0f + std::erf(x * 0.70710678118654752f));
    case Activation::gelu_tanh:
      return 0.5f * x * (1.0f + std::tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case Activation::silu:
      return x / (1.0f + std::exp(-x));
  }
  return x;
}

}  // namespace spinfer::cpu
