// The CPU's table of ops. Device memory is host memory and every op is complete when it returns.
#include "kernels/backend.h"

#include <hwy/targets.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>

#include "kernels/check.h"
#include "kernels/cpu/collective.h"
#include "kernels/cpu/context.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/pruning_ops.h"

namespace spinfer {

struct DeviceGraph {
  std::function<void()> body;
};

namespace cpu {
namespace {

int device_count() {
  return 1;
}

DeviceContext* open(const DeviceOptions& options) {
  constexpr int kMaxThreads = 4096;
  check(options.threads >= 0 && options.threads <= kMaxThreads, "threads {} must be 0…{} (0 = all cores)",
        options.threads, kMaxThreads);
  return std::make_unique<DeviceContext>(options).release();
}

void close(DeviceContext* context) noexcept {
  delete context;
}

std::string processor_name() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    const size_t colon = line.find(": ");
    if (line.compare(0, 10, "model name") == 0 && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "CPU";
}

std::string software(DeviceContext&) {
  return {};
}

DeviceInfo info(DeviceContext& context) {
  const HostMemory memory = host_memory();
  const int64_t best = hwy::SupportedTargets() & -hwy::SupportedTargets();  // lower bits are better targets
  return {fmt::format("{} ({})", processor_name(), hwy::TargetName(best)), memory.total_bytes,
          memory.free_bytes, context.pool.threads()};
}

void* allocate(DeviceContext&, size_t bytes) {
  constexpr size_t kAlignment = 256;
  const HostMemory memory = host_memory();
  // The kernel would promise the memory and kill the process when it is used.
  check(bytes <= size_t(memory.free_bytes), "out of memory: {} bytes asked for, {} of {} bytes are free",
        bytes, memory.free_bytes, memory.total_bytes);
  void* pointer = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
  check(pointer || bytes == 0, "out of memory: {} bytes asked for, {} of {} bytes are free", bytes,
        memory.free_bytes, memory.total_bytes);
  return pointer;
}

void release(DeviceContext&, void* memory) noexcept {
  std::free(memory);
}

void upload(DeviceContext&, void* device, const void* host, size_t bytes) {
  if (bytes) std::memcpy(device, host, bytes);
}

void download(DeviceContext&, void* host, const void* device, size_t bytes) {
  if (bytes) std::memcpy(host, device, bytes);
}

void fill_zero(DeviceContext&, void* device, size_t bytes) {
  if (bytes) std::memset(device, 0, bytes);
}

void synchronize(DeviceContext&) {}

void* allocate_host(DeviceContext& context, size_t bytes) {
  return allocate(context, bytes);
}
uint64_t mark(DeviceContext&) {
  return 0;
}
void wait(DeviceContext&, uint64_t) {}
double between(DeviceContext&, uint64_t, uint64_t) {
  return 0;
}

/// Nothing is queued here, so a recorded body is the body itself.
DeviceGraph* record(DeviceContext&, const std::function<void()>& body) {
  return std::make_unique<DeviceGraph>(DeviceGraph{body}).release();
}
bool replay(DeviceContext&, DeviceGraph& graph) {
  graph.body();
  return true;
}
void discard(DeviceContext&, DeviceGraph* graph) noexcept {
  delete graph;
}

void leave_out(DeviceContext& context, uint32_t kinds) {
  context.left_out = kinds;
}

double read_gbps(DeviceContext&) {
  return 0;  // engine/apps/read_bandwidth.h does
}

bool left_out(const DeviceContext& context, OpKind kind) {
  return context.left_out >> int(kind) & 1;
}

/// The op, unless its kind is left out.
template <OpKind kKind, class Args, void (*kOp)(DeviceContext&, const Args&)>
void op(DeviceContext& context, const Args& args) {
  if (!left_out(context, kKind)) kOp(context, args);
}

void gated_linear(DeviceContext& context, const GatedLinearArgs& a) {
  op<OpKind::linear, LinearArgs, linear>(context, {.w = a.w, .x = a.x, .n = a.n, .y = a.gate_up});
  op<OpKind::other, GatedActivationArgs, gated_activation>(
      context, {.gate_up = a.gate_up, .n = a.n, .f = int(a.w.m / 2), .act = a.act, .out = a.y});
}

/// Its `linear` knows no deferred norm.
bool defers_norm(DeviceContext&, const Linear&, const Linear&, int) {
  return false;
}

void all_reduce_op(DeviceContext& context, Half* x, int64_t count) {
  if (!left_out(context, OpKind::communication)) all_reduce(context, x, count);
}

void all_gather_cols_op(DeviceContext& context, const float* shard, int n, int64_t cols, float* out,
                        int64_t total) {
  if (!left_out(context, OpKind::communication)) all_gather_cols(context, shard, n, cols, out, total);
}

void add_norm_op(DeviceContext& context, const AddNormArgs& args) {
  if (args.sum_delta && args.delta) all_reduce_op(context, args.delta, int64_t{args.n} * args.d);
  op<OpKind::norm, AddNormArgs, add_norm>(context, args);
}

constinit const Backend table{
    .name = "cpu",
    .host = true,
    .most_vocab = INT32_MAX,
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
    .release_host = release,
    .download_later = download,
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
    .gated_linear = gated_linear,
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
}  // namespace cpu

const Backend& cpu_backend() {
  return cpu::table;
}

}  // namespace spinfer
