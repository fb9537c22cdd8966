// The CUDA ops that are not linear layers (those: kernels/cuda/linear.h). Contracts: kernels/ops.h; what the
// CPU throws at once for bad ids or logits, these throw at the next download or synchronize
// (kernels/cuda/fault.h).
//
// Every sum has one order given by the row itself, so no result depends on the batch around a row; only
// attention needs DeviceOptions::deterministic for that (see attention.h).
#pragma once

#include "kernels/backend.h"

namespace spinfer::cuda {

void embed(DeviceContext& context, const EmbedArgs& args);
void add_norm(DeviceContext& context, const AddNormArgs& args);
void rope_append(DeviceContext& context, const RopeAppendArgs& args);
void attention(DeviceContext& context, const AttentionArgs& args);
void gated_activation(DeviceContext& context, const GatedActivationArgs& args);
void gather_rows(DeviceContext& context, const GatherRowsArgs& args);
void logits(DeviceContext& context, const LogitsArgs& args);
void sample(DeviceContext& context, const SampleArgs& args);
void logprobs(DeviceContext& context, const LogprobsArgs& args);
void fill_random(DeviceContext& context, const FillRandomArgs& args);

}  // namespace spinfer::cuda
