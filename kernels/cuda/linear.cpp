#include "kernels/cuda/linear.h"

#include <algorithm>
#include <optional>

#include "kernels/check.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/dense_linear.h"
#include "kernels/cuda/linear_invariant.h"
#include "kernels/cuda/spmm.h"
#include "kernels/cuda/spmm_prefill.h"
#include "kernels/cuda/spmm_smbd.h"
#include "kernels/cuda/strip_stream_decode.h"
#include "kernels/gpu_footprint.h"

namespace spinfer::cuda {
namespace {

DenseArgs dense_args_of(const LinearArgs& args, const Half* dense) {
  DenseArgs a;
  a.m = args.w.m;
  a.k = args.w.k;
  a.n = args.n;
  a.w = dense;
  a.x = args.x;
  a.bias = args.w.bias;
  a.act = args.act;
  a.residual = args.residual;
  a.y = args.y;
  return a;
}

/// `Linear::layout` of a CUDA weight is its strip streams, or null.
const StripStream* streams_of(const Linear& w) {
  return static_cast<const StripStream*>(w.layout);
}

void linear_stream(Context& context, const LinearArgs& args) {
  const StripStream* streams = streams_of(args.w);
  check(streams, "linear {}×{}: the weight has no strip streams", args.w.m, args.w.k);
  SpmmArgs a{.w = *streams, .x = args.x, .n = args.n, .bias = args.w.bias, .act = args.act};
  a.residual = args.residual;
  a.norm_of_x = args.norm_of_x;
  a.norm_of_y = args.norm_of_y;
  a.y = args.y;
  spmm_stream(context, a);
}

void linear_fused(Context& context, const LinearArgs& args) {
  const StripStream* streams = streams_of(args.w);
  check(streams, "linear {}×{}: the weight has no strip streams", args.w.m, args.w.k);
  spmm_prefill(context, *streams, args);
}

constexpr size_t align_up(size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

/// Decode the whole matrix to the workspace, then multiply: reads the packed bytes once, writes and reads
/// 2·m·k more.
void linear_scratch(Context& context, const LinearArgs& args) {
  const StripStream* streams = streams_of(args.w);
  check(args.w.packed.bitmaps || streams, "linear {}×{}: the weight has no packed arrays", args.w.m,
        args.w.k);
  const size_t matrix_bytes = size_t(gpu_linear_workspace_bytes(args.w.m, args.w.k, true));
  const size_t epilogue_bytes = dense_scratch_needed(dense_args_of(args, nullptr));
  auto* scratch = static_cast<char*>(context.workspace(align_up(matrix_bytes) + epilogue_bytes));
  auto* dense = reinterpret_cast<Half*>(scratch);
  if (streams) {
    decode_streams_on_device(context, streams->view, dense);
  } else {
    decode_on_device(context, args.w.packed, 0, args.w.m, dense);
  }
  DenseArgs a = dense_args_of(args, dense);
  a.scratch = scratch + align_up(matrix_bytes);
  dense_linear(context, a);
}

/// A weight whose rows TMA cannot read (k no multiple of 8) has x copied: room for this many tokens is
/// reserved.
constexpr int kReservedPrefillTokens = 1024;

/// The workspace `linear` asks for with this weight, whatever n is (but see kReservedPrefillTokens; and
/// epilogues that cuBLASLt lacks take more): grown now, before the KV cache takes what is left.
void reserve_workspace(Context& context, const Linear& w) {
  size_t bytes = align_up(size_t(gpu_linear_workspace_bytes(w.m, w.k, !w.is_dense())));
  if (streams_of(w)) {
    context.partial_sums();
    const size_t copy = w.k % 8 ? size_t(kReservedPrefillTokens) * size_t(w.k + 8) * sizeof(Half) : 0;
    bytes = std::max(bytes, prefill_workspace_bytes(context.facts()) + copy);
  } else if (!w.is_dense()) {
    bytes = std::max(bytes, plan_smbd(w.m, w.k, kDecodeTokens, context.facts()).workspace_bytes);
  }
  if (context.deterministic()) bytes = std::max(bytes, invariant_workspace_bytes(w));
  context.workspace(bytes);
}

/// A dense weight with memory of its own, to which `fill(destination, bytes)` queues a copy.
template <class Fill>
LinearWeight prepare_dense(Context& context, int64_t m, int64_t k, const Fill& fill) {
  LinearWeight weight;
  weight.view.m = m;
  weight.view.k = k;
  weight.dense_bytes = 2 * m * k;
  weight.packed_bytes = weight.device_bytes = weight.dense_bytes;
  weight.nonzeros = m * k;
  const auto device = context.allocate_shared(size_t(weight.dense_bytes));
  fill(device.get(), size_t(weight.dense_bytes));
  weight.view.dense = static_cast<const Half*>(device.get());
  weight.storage.push_back(device);
  reserve_workspace(context, weight.view);
  return weight;
}

/// Gives the weight a bias [m] from host memory; null: none.
void add_bias(Context& context, LinearWeight& weight, const Half* bias) {
  if (!bias) return;
  const size_t bytes = size_t(weight.view.m) * sizeof(Half);
  const auto device = context.allocate_shared(bytes);
  context.upload(device.get(), bias, bytes);
  weight.view.bias = static_cast<const Half*>(device.get());
  weight.storage.push_back(device);
}

}  // namespace

LinearProblem problem_of(const Linear& weight, int n) {
  return {.m = weight.m,
          .k = weight.k,
          .n = n,
          .dense = weight.is_dense(),
          .canonical = weight.packed.bitmaps != nullptr,
          .streams = streams_of(weight) != nullptr};
}

LinearWeight prepare_packed(Context& context, DeviceTcaBme matrix, const Half* bias, PackedOptions options) {
  context.activate();
  LinearWeight weight;
  weight.view.m = matrix.view.m;
  weight.view.k = matrix.view.k;
  weight.view.bias = bias;
  weight.nonzeros = matrix.view.nonzeros;
  weight.dense_bytes = 2 * matrix.view.m * matrix.view.k;
  weight.packed_bytes = weight.device_bytes = matrix.view.bytes();
  const bool streams = kBuiltForHopper && context.facts().compute_capability == 90;
  if (streams) {
    auto layout = std::make_shared<StripStream>(make_strip_stream_on_device(
        context, matrix.view, options.gated && StripShape::can_pair(matrix.view.m)));
    weight.device_bytes = layout->device_bytes;
    weight.view.layout = layout.get();
    weight.storage.push_back(std::move(layout));
  }
  if (!streams || options.keep_canonical) {
    weight.view.packed = matrix.view;
    for (auto& array : matrix.storage) weight.storage.push_back(std::move(array));
  }
  reserve_workspace(context, weight.view);
  return weight;
}

LinearWeight prepare_linear(DeviceContext& opaque, const HostMatrix& matrix, const Half* bias, bool gated) {
  Context& context = context_of(opaque);
  context.activate();
  LinearWeight weight;
  if (const auto* dense = std::get_if<DenseMatrix>(&matrix)) {
    weight = prepare_dense(context, dense->m, dense->k,
                           [&](void* device, size_t bytes) { context.upload(device, dense->data, bytes); });
  } else {
    weight = prepare_packed(context, upload_tca_bme(context, std::get<TcaBmeMatrix>(matrix).view()), nullptr,
                            {.gated = gated});
  }
  add_bias(context, weight, bias);
  return weight;
}

LinearWeight prepare_from_device(DeviceContext& opaque, const Half* dense, int64_t m, int64_t k,
                                 double min_sparsity, const Half* bias, bool gated) {
  Context& context = context_of(opaque);
  context.activate();
  std::optional<DeviceTcaBme> packed;
  if (min_sparsity <= 1) packed = encode_on_device(context, dense, m, k);
  const bool sparse = packed && double(packed->view.nonzeros) <= (1 - min_sparsity) * double(m) * double(k);
  const auto copy = [&](void* device, size_t bytes) {
    SPINFER_CUDA_CHECK(cudaMemcpyAsync(device, dense, bytes, cudaMemcpyDeviceToDevice, context.stream()));
    SPINFER_CUDA_CHECK(cudaStreamSynchronize(context.stream()));  // the source may be overwritten
  };
  LinearWeight weight = sparse ? prepare_packed(context, std::move(*packed), nullptr, {.gated = gated})
                               : prepare_dense(context, m, k, copy);
  add_bias(context, weight, bias);
  return weight;
}

void linear_with(Context& context, const LinearArgs& args, LinearKernel kernel) {
  if (args.n == 0) return;
  context.activate();
  check(kernel == LinearKernel::stream || (!args.norm_of_x && !args.norm_of_y),
        "linear {}×{}: the kernel {} defers no norm", args.w.m, args.w.k, to_string(kernel));
  switch (kernel) {
    case LinearKernel::dense:
      check(args.w.is_dense(), "linear {}×{}: the dense kernel needs a dense weight", args.w.m, args.w.k);
      return dense_linear(context, dense_args_of(args, args.w.dense));
    case LinearKernel::smbd:
      return spmm_smbd(context, args);
    case LinearKernel::scratch:
      return linear_scratch(context, args);
    case LinearKernel::stream:
      return linear_stream(context, args);
    case LinearKernel::fused:
      return linear_fused(context, args);
  }
}

void linear(DeviceContext& opaque, const LinearArgs& args) {
  Context& context = context_of(opaque);
  context.activate();
  if (context.deterministic()) {
    check(!args.norm_of_x && !args.norm_of_y, "linear {}×{}: a deterministic context defers no norm",
          args.w.m, args.w.k);
    return linear_invariant(context, args);
  }
  linear_with(context, args, choose_linear_kernel(problem_of(args.w, args.n), context.facts()));
}

bool defers_norm(DeviceContext& opaque, const Linear& from, const Linear& to, int n) {
  const Context& context = context_of(opaque);
  const auto streams = [&](const Linear& w) {
    return choose_linear_kernel(problem_of(w, n), context.facts()) == LinearKernel::stream;
  };
  return n > 0 && from.m <= kMostDeferringFeatures && !context.deterministic() && streams(from) &&
         streams(to);
}

bool gates_in_kernel(const Context& context, const Linear& w, int n) {
  const StripStream* streams = streams_of(w);
  return streams && streams->view.shape.paired && !context.deterministic() &&
         choose_linear_kernel(problem_of(w, n), context.facts()) == LinearKernel::stream;
}

void gated_linear(Context& context, const GatedLinearArgs& args) {
  if (args.n == 0) return;
  check(gates_in_kernel(context, args.w, args.n), "gated linear {}×{}: no kernel gates {} tokens", args.w.m,
        args.w.k, args.n);
  context.activate();
  SpmmArgs a{.w = *streams_of(args.w), .x = args.x, .n = args.n, .bias = args.w.bias, .act = args.act};
  a.gated = true;
  a.norm_of_x = args.norm_of_x;
  a.y = args.y;
  spmm_stream(context, a);
}

}  // namespace spinfer::cuda
