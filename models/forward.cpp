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

void ForwardPass::linear(const LinearWeight& w, const NormedInput& x, Half* y, Activation act) const {
  if (observer && *observer) (*observer)(w, x.x, batch.n);
  ops().linear(context(),
               {.w = w.view, .x = x.x, .n = batch.n, .act = act, .y = y, .norm_of_x = x.deferred()});
}

const Half* ForwardPass::attention(int index, const NormedInput& x) const {
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
  return workspace.attn.data();
}

const Half* ForwardPass::mlp(const LayerWeights& layer, const NormedInput& x) const {
  const Activation act = model.config.activation;
  Half* inner = workspace.mlp.data();
  if (!model.config.gated_mlp) {
    linear(layer.mlp_in, x, inner, act);
    return inner;
  }
  if (observer && *observer) (*observer)(layer.mlp_in, x.x, batch.n);
  Half* gated = workspace.gated.data();
  ops().gated_linear(context(), {.w = layer.mlp_in.view,
                                 .x = x.x,
                                 .n = batch.n,
                                 .act = act,
                                 .gate_up = inner,
                                 .y = gated,
                                 .norm_of_x = x.deferred()});
  return gated;
}

bool ForwardPass::defers(const LinearWeight& w, const NextNorm& next) const {
  // Of several ranks' parts h is not known yet; observers want to see x normed, and run single layers.
  return next.reader && next.norm->gain && model.shard.world == 1 && !observer &&
         batch.n <= kMostDeferringTokens &&
         (model.config.norm == NormKind::rms || next.products->gain.size() > 0) &&
         ops().defers_norm(context(), w.view, next.reader->view, batch.n);
}

NormedInput ForwardPass::linear_add_norm(const LinearWeight& w, const Half* x, const NextNorm& next) const {
  Half* h = workspace.h.data();
  Half* out = workspace.x.data();
  if (defers(w, next)) {
    const NormKind kind = model.config.norm;
    const DeferredNorm norm{.kind = kind,
                            .gain = next.norm->gain,
                            .bound = next.norm->bound,
                            .eps = model.config.norm_eps,
                            .x = out,
                            .moments = workspace.moments.data() + next.index * moment_words(kind, batch.n),
                            .gain_product = next.products->gain.data(),
                            .bias_product = next.products->bias.data()};
    ops().linear(context(), {.w = w.view, .x = x, .n = batch.n, .residual = h, .y = h, .norm_of_y = &norm});
    return {out, norm};
  }
  Half* delta = workspace.delta.data();
  linear(w, {x}, delta);
  if (next.norm) {
    add_norm(delta, *next.norm, out);
  } else {
    add_norm(delta, {}, nullptr);
  }
  return {out};
}

NextNorm ForwardPass::norm_after_attention(int index) const {
  const LayerWeights& layer = model.layers[size_t(index)];
  return {&layer.mlp_norm, &layer.mlp_in, &layer.mlp_in_products, 2 * index};
}

NextNorm ForwardPass::norm_after_mlp(int index) const {
  if (index + 1 == model.config.layers) return {model.config.final_norm ? &model.final_norm : nullptr};
  const LayerWeights& after = model.layers[size_t(index) + 1];
  return {&after.attn_norm, &after.qkv, &after.qkv_products, 2 * index + 1};
}

NormedInput ForwardPass::pre_norm_layer(int index, const NormedInput& x, const NextNorm& next) const {
  const LayerWeights& layer = model.layers[size_t(index)];
  const NormedInput middle =
      linear_add_norm(layer.attn_out, attention(index, x), norm_after_attention(index));
  return linear_add_norm(layer.mlp_out, mlp(layer, middle), next);
}

const Half* ForwardPass::pre_norm_layers() const {
  bool any = false;
  for (int i = 0; i < model.config.layers && !any; ++i) {
    const LayerWeights& layer = model.layers[size_t(i)];
    any = defers(layer.attn_out, norm_after_attention(i)) || defers(layer.mlp_out, norm_after_mlp(i));
  }
  if (any)
    ops().fill_zero(
        context(), workspace.moments.data(),
        2 * model.layers.size() * size_t(moment_words(model.config.norm, batch.n)) * sizeof(uint64_t));
  add_norm(nullptr, model.layers.front().attn_norm, workspace.x.data());
  NormedInput x{workspace.x.data()};
  for (int i = 0; i < model.config.layers; ++i) x = pre_norm_layer(i, x, norm_after_mlp(i));
  return model.config.final_norm ? x.x : workspace.h.data();
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
  pass.add_norm(nullptr, model.layers[size_t(index)].attn_norm, workspace.x.data());
  pass.pre_norm_layer(index, {workspace.x.data()}, {});  // h as the next layer's norm would leave it
}

}  // namespace spinfer
