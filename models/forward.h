// What the forward passes share. Internal to models/.
#pragma once

#include "models/layer_forward.h"
#include "models/model.h"

namespace spinfer {

/// Everything one forward pass works on.
struct ForwardPass {
  Device& device;
  const Model& model;
  const ForwardBatch& batch;
  const KvCacheView& kv;
  Workspace& workspace;
  const LinearObserver* observer = nullptr;  ///< sees the input of every linear of a layer

  const Backend& ops() const { return device.ops(); }
  DeviceContext& context() const { return device.context(); }

  /// h += delta summed over the ranks (if given); out = norm(h). Without `norm` (no gain, no final norm) see
  /// AddNormArgs.
  void add_norm(Half* delta, const NormWeights& norm, Half* out) const;
  /// y = act(W·x + b) for all tokens.
  void linear(const LinearWeight& w, const Half* x, Half* y, Activation act = Activation::none) const;
  /// delta = this rank's part of the attention block of layer `index` on x [n][d]: QKV, rotation, cache,
  /// attention, output projection.
  void attention(int index, const Half* x, Half* delta) const;
  /// delta = this rank's part of the MLP block of a layer on x [n][d].
  void mlp(const LayerWeights& layer, const Half* x, Half* delta) const;
  /// One layer with a norm before each of its blocks, from h and the delta of the layer before (or null).
  /// Returns its own delta, which has not joined h yet.
  Half* pre_norm_layer(int index, Half* delta) const;
  /// workspace.logits of batch.logit_rows, from x [n][d], the last hidden states.
  void logits(const Half* x) const;
};

void forward_opt(const ForwardPass& pass);
void forward_llama(const ForwardPass& pass);
/// h = the embeddings of the batch.
void embed_opt(const ForwardPass& pass);
void embed_llama(const ForwardPass& pass);
/// h = norm(h + block(h)), twice: a layer of the OPT-350m kind.
void post_norm_layer_opt(const ForwardPass& pass, int index);

}  // namespace spinfer
