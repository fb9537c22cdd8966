// gated_activation: out = act(gate) · up. Bound by memory: 4 bytes read, 2 written an element. A grid of rows
// × pieces, 8 elements (16-byte accesses) a thread where rows allow it, else one.
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"

namespace spinfer::cuda {
namespace {

constexpr int kThreads = 256;

__device__ inline __half gated(__half gate, __half up, Activation act) {
  return __float2half_rn(activate(__half2float(gate), act) * __half2float(up));
}
__device__ inline Vec8 gated(Vec8 gate, Vec8 up, Activation act) {
  Vec8 out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out.pairs[i] = __halves2half2(gated(__low2half(gate.pairs[i]), __low2half(up.pairs[i]), act),
                                  gated(__high2half(gate.pairs[i]), __high2half(up.pairs[i]), act));
  }
  return out;
}

/// T: Vec8 or __half. Grid: (pieces of a row, up to 65535 rows at a time).
template <class T>
__global__ void gated_activation_kernel(const __half* gate_up, int n, int f, Activation act, __half* out) {
  let_successor_start();
  wait_for_predecessor();
  constexpr int kStep = sizeof(T) / sizeof(__half);
  const int i = int(blockIdx.x) * kThreads + int(threadIdx.x);
  if (i >= f / kStep) return;
  for (int64_t row = blockIdx.y; row < n; row += gridDim.y) {
    const T* gate = reinterpret_cast<const T*>(gate_up + row * 2 * f);
    const T* up = reinterpret_cast<const T*>(gate_up + row * 2 * f + f);
    reinterpret_cast<T*>(out + row * f)[i] = gated(gate[i], up[i], act);
  }
}

}  // namespace

void gated_activation(DeviceContext& opaque, const GatedActivationArgs& a) {
  Context& context = context_of(opaque);
  context.activate();
  const bool vector = vectorisable(a.f, a.gate_up, a.out);
  const int items = vector ? a.f / kVec : a.f;
  const dim3 grid(unsigned((items + kThreads - 1) / kThreads), unsigned(a.n < 65535 ? a.n : 65535));
  launch(context, "gated_activation",
         vector ? gated_activation_kernel<Vec8> : gated_activation_kernel<__half>, {grid, dim3(kThreads)},
         device_half(a.gate_up), a.n, a.f, a.act, device_half(a.out));
}

}  // namespace spinfer::cuda
