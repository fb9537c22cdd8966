// What the forward passes share. Internal to models/.
#pragma once

#include "models/model.h"

namespace spinfer {

/// Everything one forward pass works on.
struct ForwardPass {
  Device& device;
  const Model& model;
  const ForwardBatch& batch;
  const KvCacheView& kv;
  Workspace& workspace;

  const Backend& ops() const { return device.ops(); }
  DeviceContext& context() const { return device.context(); }

  /// h += delta (if given); out = norm(h). Without `norm` (no gain, no final norm) see AddNormArgs.
  void add_norm(const Half* delta, const NormWeights& norm, Half* out) const;
  /// y = act(W·x + b) for all tokens.
  void linear(const LinearWeight& w, const Half* x, Half* y, Activation act = Activation::none) const;
  /// delta = attention block of layer `index` on x [n][d]: QKV, rotation, cache, attention, output
  /// projection, all-reduce.
  void attention(int index, const Half* x, Half* delta) const;
  /// delta = MLP block of a layer on x [n][d], all-reduced.
  void mlp(const LayerWeights& layer, const Half* x, Half* delta) const;
  /// workspace.logits of batch.logit_rows, from x [n][d], the last hidden states.
  void logits(const Half* x) const;
};

void forward_opt(const ForwardPass& pass);
void forward_llama(const ForwardPass& pass);

}  // namespace spinfer
