// What the forward passes share. Internal to models/.
#pragma once

#include <optional>

#include "models/layer_forward.h"
#include "models/model.h"

namespace spinfer {

/// The input of a block: normed, or what a DeferredNorm has made of it.
struct NormedInput {
  const Half* x;  ///< [n][d]
  std::optional<DeferredNorm> norm = {};

  const DeferredNorm* deferred() const { return norm ? &*norm : nullptr; }
};

/// The norm behind a block, and who reads it.
struct NextNorm {
  const NormWeights* norm = nullptr;       ///< null: none, the block's output only joins h
  const LinearWeight* reader = nullptr;    ///< null: no linear of a layer
  const NormProducts* products = nullptr;  ///< the reader's
  int index = 0;                           ///< of the norm in the pass
};

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
  void linear(const LinearWeight& w, const NormedInput& x, Half* y, Activation act = Activation::none) const;
  /// The attention block of layer `index` but for its output projection: QKV, rotation, cache, attention.
  /// Returns that projection's input.
  const Half* attention(int index, const NormedInput& x) const;
  /// The MLP block of a layer but for its last linear, whose input it returns.
  const Half* mlp(const LayerWeights& layer, const NormedInput& x) const;
  NextNorm norm_after_attention(int index) const;
  NextNorm norm_after_mlp(int index) const;
  /// True where the norm behind `w` is left to its reader (DeferredNorm).
  bool defers(const LinearWeight& w, const NextNorm& next) const;
  /// h += W·x + b summed over the ranks, then the next norm: the end of a block.
  NormedInput linear_add_norm(const LinearWeight& w, const Half* x, const NextNorm& next) const;
  /// One layer with a norm before each of its blocks.
  NormedInput pre_norm_layer(int index, const NormedInput& x, const NextNorm& next) const;
  /// All of them from the embeddings in h, and the final norm: returns the last hidden states.
  const Half* pre_norm_layers() const;
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
