// The CPU backend with an op that fails in one call.
#pragma once

#include <atomic>
#include <limits>
#include <stdexcept>

#include "kernels/backend.h"

namespace spinfer {

// Read by the ops below, which are plain functions.
inline std::atomic<int> calls_until_fault{-1};

inline void attention_with_fault(DeviceContext& context, const AttentionArgs& args) {
  if (calls_until_fault.fetch_sub(1) == 0) throw std::runtime_error("injected fault in attention");
  cpu_backend().attention(context, args);
}

/// In the first row: that of the oldest request that decodes.
inline void logits_with_nan(DeviceContext& context, const LogitsArgs& args) {
  cpu_backend().logits(context, args);
  if (calls_until_fault.fetch_sub(1) == 0)
    args.logits[args.w.m / 2] = std::numeric_limits<float>::quiet_NaN();
}

/// The CPU's table with two ops replaced.
inline Backend faulty_backend(void (&attention)(DeviceContext&, const AttentionArgs&) = attention_with_fault,
                              void (&logits)(DeviceContext&, const LogitsArgs&) = cpu_backend().logits) {
  const Backend& cpu = cpu_backend();
  return {.name = cpu.name,
          .host = cpu.host,
          .most_vocab = cpu.most_vocab,
          .device_count = cpu.device_count,
          .open = cpu.open,
          .close = cpu.close,
          .info = cpu.info,
          .software = cpu.software,
          .allocate = cpu.allocate,
          .release = cpu.release,
          .upload = cpu.upload,
          .download = cpu.download,
          .fill_zero = cpu.fill_zero,
          .synchronize = cpu.synchronize,
          .prepare_linear = cpu.prepare_linear,
          .prepare_from_device = cpu.prepare_from_device,
          .fill_random = cpu.fill_random,
          .allocate_host = cpu.allocate_host,
          .release_host = cpu.release_host,
          .download_later = cpu.download_later,
          .mark = cpu.mark,
          .wait = cpu.wait,
          .between = cpu.between,
          .record = cpu.record,
          .replay = cpu.replay,
          .discard = cpu.discard,
          .leave_out = cpu.leave_out,
          .read_gbps = cpu.read_gbps,
          .embed = cpu.embed,
          .add_norm = cpu.add_norm,
          .linear = cpu.linear,
          .gated_linear = cpu.gated_linear,
          .defers_norm = cpu.defers_norm,
          .rope_append = cpu.rope_append,
          .attention = attention,
          .gated_activation = cpu.gated_activation,
          .gather_rows = cpu.gather_rows,
          .logits = logits,
          .sample = cpu.sample,
          .logprobs = cpu.logprobs,
          .input_statistics = cpu.input_statistics,
          .inverse_factor = cpu.inverse_factor,
          .sparsegpt = cpu.sparsegpt,
          .connect = cpu.connect,
          .all_reduce = cpu.all_reduce,
          .all_gather_cols = cpu.all_gather_cols,
          .abort_group = cpu.abort_group};
}

}  // namespace spinfer
