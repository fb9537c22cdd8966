// Rotary position embedding of a pair, one expression for all kernels: they agree bit for bit.
#pragma once

namespace spinfer::cuda {

/// The first of a pair (a, b) rotated by an angle.
__device__ inline float rotated_first(float a, float b, float cosine, float sine) {
  return __fmaf_rn(a, cosine, -__fmul_rn(b, sine));
}
__device__ inline float rotated_second(float a, float b, float cosine, float sine) {
  return __fmaf_rn(b, cosine, __fmul_rn(a, sine));
}
__device__ inline void rotate(float& a, float& b, float cosine, float sine) {
  const float first = rotated_first(a, b, cosine, sine);
  b = rotated_second(a, b, cosine, sine);
  a = first;
}

}  // namespace spinfer::cuda
