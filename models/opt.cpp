// OPT (Zhang et al. 2022): learned positions, layer norms, biases, ReLU MLP. The 350M variant norms after
// each block instead of before it and has embeddings narrower than the hidden states, projected in and out.
#include "models/forward.h"

namespace spinfer {

/// h = project_in(tokens) + positions
void embed_opt(const ForwardPass& pass) {
  const Model& model = pass.model;
  Workspace& ws = pass.workspace;
  const bool projected = model.project_in.view.m > 0;
  pass.ops().embed(pass.context(), {.ids = pass.batch.token_ids,
                                    .newest = pass.batch.newest_ids,
                                    .table = model.embedding.data(),
                                    .rows = model.config.vocab_size,
                                    .n = pass.batch.n,
                                    .d = int(model.config.embed_size),
                                    .out = projected ? ws.x.data() : ws.h.data()});
  if (projected) pass.linear(model.project_in, {ws.x.data()}, ws.h.data());
  pass.ops().embed(pass.context(), {.ids = pass.batch.positions,
                                    .id_offset = model.config.position_offset,
                                    .table = model.positions.data(),
                                    .rows = model.config.max_positions + model.config.position_offset,
                                    .n = pass.batch.n,
                                    .d = int(model.config.hidden_size),
                                    .accumulate = true,
                                    .out = ws.h.data()});
}

void post_norm_layer_opt(const ForwardPass& pass, int index) {
  Workspace& ws = pass.workspace;
  const LayerWeights& layer = pass.model.layers[size_t(index)];
  pass.linear(layer.attn_out, {pass.attention(index, {ws.h.data()})}, ws.delta.data());
  pass.add_norm(ws.delta.data(), layer.attn_norm, ws.h.data());
  pass.linear(layer.mlp_out, {pass.mlp(layer, {ws.h.data()})}, ws.delta.data());
  pass.add_norm(ws.delta.data(), layer.mlp_norm, ws.h.data());
}

namespace {

/// h = norm(h + block(h)), twice a layer.
void layers_post_norm(const ForwardPass& pass) {
  for (int i = 0; i < pass.model.config.layers; ++i) post_norm_layer_opt(pass, i);
}

}  // namespace

void forward_opt(const ForwardPass& pass) {
  const ModelConfig& config = pass.model.config;
  embed_opt(pass);
  if (config.norm_before) return pass.logits(pass.pre_norm_layers());
  layers_post_norm(pass);
  pass.logits(pass.workspace.h.data());
}

}  // namespace spinfer
