// What every linear kernel does to an fp32 accumulator before it is stored: y = act(acc + bias) + residual,
// rounded once.
#pragma once

#include <cuda_fp16.h>

#include "kernels/ops.h"

namespace spinfer::cuda {

/// By value into kernels. Null pointers: no bias, no residual.
struct Epilogue {
  const __half* bias = nullptr;  ///< [m]
  const __half* residual =
      nullptr;  ///< [n][m]; may be the output: each element is read by the thread that writes it
  Activation act = Activation::none;
};

inline Epilogue epilogue_of(const LinearArgs& args) {
  return {reinterpret_cast<const __half*>(args.w.bias), reinterpret_cast<const __half*>(args.residual),
          args.act};
}

__device__ inline float activate(float x, Activation act) {
  switch (act) {
    case Activation::none:
      return x;
    case Activation::relu:
      return x < 0.0f ? 0.0f : x;  // unlike fmaxf, keeps NaN
    case Activation::gelu:
      return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case Activation::gelu_tanh:
      return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case Activation::silu:
      return x / (1.0f + __expf(-x));
  }
  return x;
}

/// `bias` is the row's bias in fp32 (0 without one); `index` the element's index in y and residual.
__device__ inline __half finish(float acc, float bias, const Epilogue& e, int64_t index) {
  float y = activate(acc + bias, e.act);
  if (e.residual) y += __half2float(e.residual[index]);
  return __float2half_rn(y);
}

}  // namespace spinfer::cuda
