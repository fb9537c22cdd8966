// The CPU's table of ops. Device memory is host memory and every op is complete when it returns.
#include "kernels/backend.h"

#include <hwy/targets.h>

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

namespace spinfer {
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

constinit const Backend table{
    .name = "cpu",
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
}  // namespace cpu

const Backend& cpu_backend() {
  return cpu::table;
}

}  // namespace spinfer
