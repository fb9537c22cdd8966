#include "models/forward.h"

#include <cassert>
#include <cmath>

namespace spinfer {

void ForwardPass::add_norm(Half* delta, const NormWeights& norm, Half* out) const {
  ops().add_norm(context(), {.h = workspace.h.data(),
                             .delta = delta,
                             .kind = model.config.norm,
                             .gain = norm.gain,
                             .bias = norm.bias,
                             .eps = model.config.norm_eps,
                             .n = batch.n,
                             .d = int(model.config.hidden_size),
                             .out = out,
                             .sum_delta = model.shard.world > 1});
}

void ForwardPass::linear(const LinearWeight& w, const Half* x, Half* y, Activation act) const {
  if (observer && *observer) (*observer)(w, x, batch.n);
  ops().linear(context(), {.w = w.view, .x = x, .n = batch.n, .act = act, .y = y});
}

void ForwardPass::attention(int index, const Half* x, Half* delta) const {
  const LayerWeights& layer = model.layers[size_t(index)];
  const KvLayer& cache = kv.layers[size_t(index)];
  const int head_dim = model.config.head_dim;
  Half* qkv = workspace.qkv.data();
  linear(layer.qkv, x, qkv);
  const RopeAppendArgs append{.qkv = qkv,
                              .positions = batch.positions,
                              .slots = batch.slots,
                              .inv_freq = model.inv_freq.data(),
                              .n = batch.n,
                              .q_heads = model.q_heads,
                              .kv_heads = model.kv_heads,
                              .head_dim = head_dim,
                              .block_size = kv.block_size,
                              .kv = cache};
  ops().attention(context(), {.qkv = qkv,
                              .append = &append,
                              .seqs = batch.seqs,
                              .kv = cache,
                              .n = batch.n,
                              .q_heads = model.q_heads,
                              .kv_heads = model.kv_heads,
                              .head_dim = head_dim,
                              .block_size = kv.block_size,
                              .scale = 1 / std::sqrt(float(head_dim)),
                              .out = workspace.attn.data()});
  linear(layer.attn_out, workspace.attn.data(), delta);
}

void ForwardPass::mlp(const LayerWeights& layer, const Half* x, Half* delta) const {
  const Activation act = model.config.activation;
  Half* inner = workspace.mlp.data();
  if (model.config.gated_mlp) {
    linear(layer.mlp_in, x, inner);
    ops().gated_activation(context(), {.gate_up = inner,
                                       .n = batch.n,
                                       .f = int(model.ffn_size),
                                       .act = act,
                                       .out = workspace.gated.data()});
    inner = workspace.gated.data();
  } else {
    linear(layer.mlp_in, x, inner, act);
  }
  linear(layer.mlp_out, inner, delta);
}

Half* ForwardPass::pre_norm_layer(int index, Half* delta) const {
  const LayerWeights& layer = model.layers[size_t(index)];
  add_norm(delta, layer.attn_norm, workspace.x.data());
  attention(index, workspace.x.data(), workspace.delta.data());
  add_norm(workspace.delta.data(), layer.mlp_norm, workspace.x.data());
  mlp(layer, workspace.x.data(), workspace.delta.data());
  return workspace.delta.data();
}

void ForwardPass::logits(const Half* x) const {
  const int n = batch.num_logits;
  const Half* last = workspace.last.data();
  ops().gather_rows(context(), {.src = x,
                                .rows = batch.logit_rows,
                                .n = n,
                                .d = int(model.config.hidden_size),
                                .out = workspace.last.data()});
  if (model.project_out.view.m > 0) {
    ops().linear(context(), {.w = model.project_out.view, .x = last, .n = n, .y = workspace.head_in.data()});
    last = workspace.head_in.data();
  }
  float* mine = model.shard.world > 1 ? workspace.logits_shard.data() : workspace.logits.data();
  ops().logits(context(), {.w = model.head.view, .x = last, .n = n, .logits = mine});
  if (model.shard.world > 1) {
    ops().all_gather_cols(context(), mine, n, model.vocab_shard, workspace.logits.data(),
                          model.config.vocab_size);
  }
}

void forward(Device& device, const Model& model, const ForwardBatch& batch, const KvCacheView& kv,
             Workspace& workspace) {
  assert(batch.n <= workspace.max_tokens && batch.num_logits <= workspace.max_logits);
  assert(kv.layers.size() == model.layers.size());
  const ForwardPass pass{device, model, batch, kv, workspace};
  switch (model.config.architecture) {
    case Architecture::opt:
      forward_opt(pass);
      break;
    case Architecture::llama:
    case Architecture::qwen2:
      forward_llama(pass);
      break;
  }
}

void forward_embeddings(Device& device, const Model& model, const ForwardBatch& batch, Workspace& workspace) {
  const ForwardPass pass{device, model, batch, {}, workspace};
  if (model.config.architecture == Architecture::opt) {
    embed_opt(pass);
  } else {
    embed_llama(pass);
  }
}

void forward_layer(Device& device, const Model& model, int index, const ForwardBatch& batch,
                   const KvCacheView& kv, Workspace& workspace, const LinearObserver& observer) {
  const ForwardPass pass{device, model, batch, kv, workspace, &observer};
  if (!model.config.norm_before) return post_norm_layer_opt(pass, index);
  Half* delta = pass.pre_norm_layer(index, nullptr);
  pass.add_norm(delta, {}, nullptr);  // h as the next layer's norm would leave it
}

}  // namespace spinfer
