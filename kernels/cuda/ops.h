// The CUDA ops that are not linear layers (those: kernels/cuda/linear.h). Contracts: kernels/ops.h; what the
// CPU throws at once for bad ids or logits, these throw at the next download or synchronize
// (kernels/cuda/fault.h).
//
// Every sum has one order given by the row itself, so no result depends on the batch around a row; only
// attention needs DeviceOptions::deterministic for that (see attention.h).
#pragma once

#include "kernels/backend.h"

namespace spinfer::cuda {

class PeerGroup;

void embed(DeviceContext& context, const EmbedArgs& args);
/// delta is taken as it is, whatever args.sum_delta says, or is rank `rank`'s part of a sum over `peers`.
void add_norm(DeviceContext& context, const AddNormArgs& args, const PeerGroup* peers = nullptr,
              int rank = 0);
/// True where add_norm takes these peers.
bool add_norm_sums(const PeerGroup& peers, const AddNormArgs& args);
/// Has the current device load the kernels of add_norm that wait for other ranks: the driver, which loads
/// kernels when they are first launched, may wait for all that run before it loads one.
void load_summing_norms();
void rope_append(DeviceContext& context, const RopeAppendArgs& args);
void attention(DeviceContext& context, const AttentionArgs& args);
void gated_activation(DeviceContext& context, const GatedActivationArgs& args);
void gather_rows(DeviceContext& context, const GatherRowsArgs& args);
void logits(DeviceContext& context, const LogitsArgs& args);
/// The longest row that sample and logprobs take.
inline constexpr int kMaxRowVocab = 1 << 18;
void sample(DeviceContext& context, const SampleArgs& args);
void logprobs(DeviceContext& context, const LogprobsArgs& args);
void fill_random(DeviceContext& context, const FillRandomArgs& args);

}  // namespace spinfer::cuda
