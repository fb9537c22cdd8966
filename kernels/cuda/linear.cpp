#include "kernels/cuda/linear.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/dense_linear.h"
#include "kernels/cuda/spmm_smbd.h"

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

constexpr size_t align_up(size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

/// Decode the whole matrix to the workspace, then multiply: reads the packed bytes once, writes and reads
/// 2·m·k more.
void linear_scratch(Context& context, const LinearArgs& args) {
  check(args.w.packed.bitmaps, "linear {}×{}: scratch prefill needs the canonical TCA-BME arrays", args.w.m,
        args.w.k);
  const size_t matrix_bytes = align_up(size_t(args.w.m) * size_t(args.w.k) * sizeof(Half));
  auto* scratch = static_cast<char*>(context.workspace(matrix_bytes + dense_scratch_bytes(args.w.m, args.n)));
  auto* dense = reinterpret_cast<Half*>(scratch);
  decode_on_device(context, args.w.packed, 0, args.w.m, dense);
  DenseArgs a = dense_args_of(args, dense);
  a.scratch = scratch + matrix_bytes;
  dense_linear(context, a);
}

/// The most workspace `linear` asks for with this weight, whatever n is: grown now, not during a graph
/// capture.
void reserve_workspace(Context& context, const Linear& w) {
  size_t bytes = dense_scratch_bytes(w.m, INT32_MAX);
  if (!w.is_dense()) {
    bytes += align_up(size_t(w.m) * size_t(w.k) * sizeof(Half));
    bytes = std::max(bytes, plan_smbd(w.m, w.k, kDecodeTokens, context.facts()).workspace_bytes);
  }
  context.workspace(bytes);
}

LinearWeight prepare_dense(Context& context, const DenseMatrix& matrix) {
  LinearWeight weight;
  weight.view.m = matrix.m;
  weight.view.k = matrix.k;
  weight.dense_bytes = 2 * matrix.m * matrix.k;
  weight.packed_bytes = weight.device_bytes = weight.dense_bytes;
  weight.nonzeros = matrix.m * matrix.k;
  const auto device = context.allocate_shared(size_t(weight.dense_bytes));
  SPINFER_CUDA_CHECK(cudaMemcpyAsync(device.get(), matrix.data, size_t(weight.dense_bytes),
                                     cudaMemcpyHostToDevice, context.stream()));
  SPINFER_CUDA_CHECK(cudaStreamSynchronize(context.stream()));  // the host memory may go away
  weight.view.dense = static_cast<const Half*>(device.get());
  weight.storage.push_back(device);
  reserve_workspace(context, weight.view);
  return weight;
}

}  // namespace

LinearProblem problem_of(const Linear& weight, int n) {
  return {
      weight.m, weight.k, n, weight.is_dense(), weight.packed.bitmaps != nullptr, weight.layout != nullptr};
}

LinearWeight prepare_packed(Context& context, DeviceTcaBme matrix, const Half* bias, PackedOptions) {
  context.activate();
  LinearWeight weight;
  weight.view.m = matrix.view.m;
  weight.view.k = matrix.view.k;
  weight.view.packed = matrix.view;
  weight.view.bias = bias;
  weight.nonzeros = matrix.view.nonzeros;
  weight.dense_bytes = 2 * matrix.view.m * matrix.view.k;
  weight.packed_bytes = weight.device_bytes = matrix.view.bytes();
  weight.storage = std::move(matrix.storage);
  reserve_workspace(context, weight.view);
  return weight;
}

LinearWeight prepare_linear(DeviceContext& opaque, const HostMatrix& matrix, const Half* bias) {
  Context& context = context_of(opaque);
  context.activate();
  LinearWeight weight;
  if (const auto* dense = std::get_if<DenseMatrix>(&matrix)) {
    weight = prepare_dense(context, *dense);
  } else {
    weight = prepare_packed(context, upload_tca_bme(context, std::get<TcaBmeMatrix>(matrix).view()), nullptr);
  }
  if (bias) {
    const size_t bytes = size_t(weight.view.m) * sizeof(Half);
    const auto device = context.allocate_shared(bytes);
    SPINFER_CUDA_CHECK(cudaMemcpyAsync(device.get(), bias, bytes, cudaMemcpyHostToDevice, context.stream()));
    SPINFER_CUDA_CHECK(cudaStreamSynchronize(context.stream()));  // the host memory may go away
    weight.view.bias = static_cast<const Half*>(device.get());
    weight.storage.push_back(device);
  }
  return weight;
}

void linear_with(Context& context, const LinearArgs& args, LinearKernel kernel) {
  if (args.n == 0) return;
  context.activate();
  switch (kernel) {
    case LinearKernel::dense:
      check(args.w.is_dense(), "linear {}×{}: the dense kernel needs a dense weight", args.w.m, args.w.k);
      return dense_linear(context, dense_args_of(args, args.w.dense));
    case LinearKernel::smbd:
      return spmm_smbd(context, args);
    case LinearKernel::scratch:
      return linear_scratch(context, args);
    case LinearKernel::stream:
    case LinearKernel::fused:
      break;
  }
  fail("linear {}×{}: kernel {} is not available on this device", args.w.m, args.w.k, to_string(kernel));
}

void linear(DeviceContext& opaque, const LinearArgs& args) {
  Context& context = context_of(opaque);
  linear_with(context, args, choose_linear_kernel(problem_of(args.w, args.n), context.facts()));
}

}  // namespace spinfer::cuda
