// logits: W·x + b with an fp32 result. A dense head goes to cuBLAS; a packed one is multiplied from its strip
// streams, or decoded to scratch where it has none.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/dense_linear.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_invariant.h"
#include "kernels/cuda/linear_plan.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/spmm.h"
#include "kernels/cuda/tca_bme_device.h"

namespace spinfer::cuda {
namespace {

constexpr int kThreads = 256;

/// cuBLASLt takes no fp16 bias beside an fp32 result.
__global__ void add_bias_kernel(const __half* bias, int64_t m, int n, float* logits) {
  let_successor_start();
  wait_for_predecessor();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= m) return;
  const float b = __half2float(bias[i]);
  for (int row = 0; row < n; ++row) logits[row * m + i] += b;
}

/// Rows in pieces of what the decode kernel takes: sampled rows are as few as sequences.
void stream_logits(Context& context, const LogitsArgs& args, const StripStream& streams) {
  const int most = context.deterministic() ? kDecodeTokens : kStreamMaxTokens;
  for (int begin = 0; begin < args.n; begin += most) {
    SpmmArgs a{.w = streams, .x = args.x + begin * args.w.k, .n = std::min(most, args.n - begin)};
    a.bias = args.w.bias;
    a.y = args.logits + begin * args.w.m;
    a.fp32_out = true;
    spmm_stream(context, a);
  }
}

}  // namespace

void logits(DeviceContext& opaque, const LogitsArgs& args) {
  if (args.n == 0) return;
  Context& context = context_of(opaque);
  context.activate();
  if (const auto* streams = static_cast<const StripStream*>(args.w.layout))
    return stream_logits(context, args, *streams);
  DenseArgs a;
  a.m = args.w.m;
  a.k = args.w.k;
  a.n = args.n;
  a.w = args.w.dense;
  a.x = args.x;
  a.y = args.logits;
  a.fp32_out = true;
  if (!a.w) {
    check(args.w.packed.bitmaps, "logits {}×{}: a packed head needs the canonical TCA-BME arrays", a.m, a.k);
    auto* dense = static_cast<Half*>(context.workspace(size_t(a.m) * size_t(a.k) * sizeof(Half)));
    decode_on_device(context, args.w.packed, 0, a.m, dense);
    a.w = dense;
  }
  if (context.deterministic() && args.w.is_dense()) {
    dense_invariant(context, a);
  } else {
    dense_linear(context, a);
  }
  if (args.w.bias) {
    launch(context, "add_bias", add_bias_kernel,
           {dim3(unsigned((a.m + kThreads - 1) / kThreads)), dim3(kThreads)}, device_half(args.w.bias), a.m,
           a.n, args.logits);
  }
}

}  // namespace spinfer::cuda
