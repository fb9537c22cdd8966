// The CPU ops that are not linear layers (those: kernels/cpu/linear.h). Contracts: kernels/ops.h.
//
// No result depends on the batch around a row, on how a prompt is cut into chunks or on the number of
// threads: every sum has one order, given by the row itself.
#pragma once

#include <cstdint>

#include "kernels/cpu/context.h"
#include "kernels/ops.h"

namespace spinfer::cpu {

void embed(DeviceContext& context, const EmbedArgs& args);
void add_norm(DeviceContext& context, const AddNormArgs& args);
void rope_append(DeviceContext& context, const RopeAppendArgs& args);
void attention(DeviceContext& context, const AttentionArgs& args);
void gated_activation(DeviceContext& context, const GatedActivationArgs& args);
void gather_rows(DeviceContext& context, const GatherRowsArgs& args);
void sample(DeviceContext& context, const SampleArgs& args);
void logprobs(DeviceContext& context, const LogprobsArgs& args);
void fill_random(DeviceContext& context, const FillRandomArgs& args);

/// body(i) for each of `rows` rows of `row_size` elements: on all threads where that is worth waking them
/// (≈ 10 µs, in which one core passes over about 32k elements), else on this one.
template <class Body>
void for_rows(DeviceContext& context, int64_t rows, int64_t row_size, const Body& body) {
  constexpr int64_t kWorthThreads = 32768;
  if (context.pool.threads() == 1 || rows < 2 || rows * row_size < kWorthThreads) {
    for (int64_t i = 0; i < rows; ++i) body(i);
  } else {
    context.pool.parallel_for(rows, body);
  }
}

}  // namespace spinfer::cpu
