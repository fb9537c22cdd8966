// The CUDA table of ops.
#include "kernels/backend.h"

#include <fmt/format.h>

#include <memory>
#include <string>

#include "kernels/cuda/bench_kernels.h"
#include "kernels/cuda/collective.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/graph.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/nccl_library.h"
#include "kernels/cuda/op_state.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/pruning_ops.h"

namespace spinfer {
namespace cuda {
namespace {

DeviceContext* open(const DeviceOptions& options) {
  return &opaque(*std::make_unique<Context>(options).release());
}

void close(DeviceContext* context) noexcept {
  if (context) delete &context_of(*context);
}

DeviceInfo info(DeviceContext& context) {
  return context_of(context).info();
}

std::string software(DeviceContext&) {
  int driver = 0, runtime = 0;
  SPINFER_CUDA_CHECK(cudaDriverGetVersion(&driver));
  SPINFER_CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
  const auto version = [](int v) { return fmt::format("{}.{}", v / 1000, v % 1000 / 10); };
  return fmt::format("CUDA {} on a driver for {}, {}", version(runtime), version(driver), nccl_version());
}

void* allocate(DeviceContext& context, size_t bytes) {
  return context_of(context).allocate(bytes);
}

void release(DeviceContext& context, void* memory) noexcept {
  context_of(context).release(memory);  // waits for the device, so no op under way still uses it
}

void upload(DeviceContext& opaque, void* device, const void* host, size_t bytes) {
  Context& context = context_of(opaque);
  context.activate();
  context.upload(device, host, bytes);
}

void download(DeviceContext& opaque, void* host, const void* device, size_t bytes) {
  Context& context = context_of(opaque);
  context.activate();
  context.op_state().drain(context);  // before the copy, which would wait for a stuck collective unwatched
  if (bytes == 0) return;
  SPINFER_CUDA_CHECK(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, context.stream()));
  SPINFER_CUDA_CHECK(cudaStreamSynchronize(context.stream()));
}

void fill_zero(DeviceContext& opaque, void* device, size_t bytes) {
  Context& context = context_of(opaque);
  context.activate();
  if (bytes) SPINFER_CUDA_CHECK(cudaMemsetAsync(device, 0, bytes, context.stream()));
}

void synchronize(DeviceContext& opaque) {
  Context& context = context_of(opaque);
  context.activate();
  context.op_state().drain(context);
}

void* allocate_host(DeviceContext& opaque, size_t bytes) {
  context_of(opaque).activate();
  void* memory = nullptr;
  SPINFER_CUDA_CHECK(cudaHostAlloc(&memory, bytes, cudaHostAllocPortable));
  return memory;
}

/// A failure here has been or will be reported by the work that caused it.
void release_host(DeviceContext& opaque, void* memory) noexcept {
  cudaSetDevice(context_of(opaque).ordinal());
  cudaFreeHost(memory);
}

void download_later(DeviceContext& opaque, void* host, const void* device, size_t bytes) {
  Context& context = context_of(opaque);
  context.activate();
  if (bytes)
    SPINFER_CUDA_CHECK(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, context.stream()));
}

uint64_t mark(DeviceContext& opaque) {
  Context& context = context_of(opaque);
  context.activate();
  return context.op_state().mark(context);
}

void wait(DeviceContext& opaque, uint64_t mark) {
  Context& context = context_of(opaque);
  context.activate();
  context.op_state().wait(mark);
}

double between(DeviceContext& opaque, uint64_t mark, uint64_t later) {
  Context& context = context_of(opaque);
  context.activate();
  return context.op_state().between(mark, later);
}

void leave_out(DeviceContext& opaque, uint32_t kinds) {
  context_of(opaque).left_out = kinds;
}

double read_gbps(DeviceContext& opaque) {
  context_of(opaque).activate();
  return measure_read_gbps(context_of(opaque));
}

bool left_out(DeviceContext& opaque, OpKind kind) {
  return context_of(opaque).left_out >> int(kind) & 1;
}

/// The op, unless its kind is left out.
template <OpKind kKind, class Args, void (*kOp)(DeviceContext&, const Args&)>
void op(DeviceContext& opaque, const Args& args) {
  if (!left_out(opaque, kKind)) kOp(opaque, args);
}

void gated_linear_op(DeviceContext& opaque, const GatedLinearArgs& a) {
  const bool multiplied = !left_out(opaque, OpKind::linear);
  if (gates_in_kernel(context_of(opaque), a.w, a.n)) {
    if (multiplied) gated_linear(context_of(opaque), a);
    return;
  }
  if (multiplied) linear(opaque, {.w = a.w, .x = a.x, .n = a.n, .y = a.gate_up, .norm_of_x = a.norm_of_x});
  op<OpKind::other, GatedActivationArgs, gated_activation>(
      opaque, {.gate_up = a.gate_up, .n = a.n, .f = int(a.w.m / 2), .act = a.act, .out = a.y});
}

/// The sum over ranks in it is communication.
void add_norm_op(DeviceContext& opaque, const AddNormArgs& args) {
  const bool summed = args.sum_delta && args.delta && !left_out(opaque, OpKind::communication);
  const bool normed = !left_out(opaque, OpKind::norm);
  const OpState& state = context_of(opaque).op_state();
  const PeerGroup* peers = summed && normed && state.group ? state.group->peers() : nullptr;
  if (peers && add_norm_sums(*peers, args)) {
    state.group->check_alive();
    return add_norm(opaque, args, peers, state.rank);
  }
  if (summed) all_reduce(opaque, args.delta, int64_t{args.n} * args.d);
  if (normed) add_norm(opaque, args);
}

void all_reduce_op(DeviceContext& opaque, Half* x, int64_t count) {
  if (!left_out(opaque, OpKind::communication)) all_reduce(opaque, x, count);
}

void all_gather_cols_op(DeviceContext& opaque, const float* shard, int n, int64_t cols, float* out,
                        int64_t total) {
  if (!left_out(opaque, OpKind::communication)) all_gather_cols(opaque, shard, n, cols, out, total);
}

constinit const Backend table{
    .name = "cuda",
    .host = false,
    .most_vocab = kMaxRowVocab,
    .device_count = device_count,
    .open = open,
    .close = close,
    .info = info,
    .software = software,
    .allocate = allocate,
    .release = release,
    .upload = upload,
    .download = download,
    .fill_zero = fill_zero,
    .synchronize = synchronize,
    .prepare_linear = prepare_linear,
    .prepare_from_device = prepare_from_device,
    .fill_random = fill_random,
    .allocate_host = allocate_host,
    .release_host = release_host,
    .download_later = download_later,
    .mark = mark,
    .wait = wait,
    .between = between,
    .record = record,
    .replay = replay,
    .discard = discard,
    .leave_out = leave_out,
    .read_gbps = read_gbps,
    .embed = op<OpKind::other, EmbedArgs, embed>,
    .add_norm = add_norm_op,
    .linear = op<OpKind::linear, LinearArgs, linear>,
    .gated_linear = gated_linear_op,
    .defers_norm = defers_norm,
    .rope_append = op<OpKind::attention, RopeAppendArgs, rope_append>,
    .attention = op<OpKind::attention, AttentionArgs, attention>,
    .gated_activation = op<OpKind::other, GatedActivationArgs, gated_activation>,
    .gather_rows = op<OpKind::other, GatherRowsArgs, gather_rows>,
    .logits = op<OpKind::linear, LogitsArgs, logits>,
    .sample = op<OpKind::sampling, SampleArgs, sample>,
    .logprobs = op<OpKind::sampling, LogprobsArgs, logprobs>,
    .input_statistics = input_statistics,
    .inverse_factor = inverse_factor,
    .sparsegpt = sparsegpt,
    .connect = connect,
    .all_reduce = all_reduce_op,
    .all_gather_cols = all_gather_cols_op,
    .abort_group = abort_group,
};

}  // namespace
}  // namespace cuda

const Backend* cuda_backend() {
  return &cuda::table;
}

}  // namespace spinfer
