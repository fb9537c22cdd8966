// The CUDA table of ops.
#include "kernels/backend.h"

#include <memory>

#include "kernels/cuda/collective.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/op_state.h"
#include "kernels/cuda/ops.h"

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

void* allocate(DeviceContext& context, size_t bytes) {
  return context_of(context).allocate(bytes);
}

void release(DeviceContext& context, void* memory) noexcept {
  context_of(context).release(memory);  // waits for the device, so no op under way still uses it
}

void upload(DeviceContext& opaque, void* device, const void* host, size_t bytes) {
  Context& context = context_of(opaque);
  context.activate();
  context.op_state().upload(context, device, host, bytes);
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

constinit const Backend table{
    .name = "cuda",
    .device_count = device_count,
    .open = open,
    .close = close,
    .info = info,
    .allocate = allocate,
    .release = release,
    .upload = upload,
    .download = download,
    .fill_zero = fill_zero,
    .synchronize = synchronize,
    .prepare_linear = prepare_linear,
    .embed = embed,
    .add_norm = add_norm,
    .linear = linear,
    .rope_append = rope_append,
    .attention = attention,
    .gated_activation = gated_activation,
    .gather_rows = gather_rows,
    .logits = logits,
    .sample = sample,
    .logprobs = logprobs,
    .connect = connect,
    .all_reduce = all_reduce,
    .all_gather_cols = all_gather_cols,
    .abort_group = abort_group,
};

}  // namespace
}  // namespace cuda

const Backend* cuda_backend() {
  return &cuda::table;
}

}  // namespace spinfer
