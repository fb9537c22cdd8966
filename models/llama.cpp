// LLaMA 1/2/3 (Touvron et al. 2023; Grattafiori et al. 2024) and Qwen2: RMS norm before each block, rotary
// positions, grouped-query attention, gated MLP.
#include "models/forward.h"

namespace spinfer {

void embed_llama(const ForwardPass& pass) {
  const Model& model = pass.model;
  pass.ops().embed(pass.context(), {.ids = pass.batch.token_ids,
                                    .newest = pass.batch.newest_ids,
                                    .table = model.embedding.data(),
                                    .rows = model.config.vocab_size,
                                    .n = pass.batch.n,
                                    .d = int(model.config.hidden_size),
                                    .out = pass.workspace.h.data()});
}

void forward_llama(const ForwardPass& pass) {
  const Model& model = pass.model;
  Workspace& ws = pass.workspace;
  embed_llama(pass);
  Half* delta = nullptr;  // a block's output joins h with the next norm
  for (int i = 0; i < model.config.layers; ++i) delta = pass.pre_norm_layer(i, delta);
  pass.add_norm(delta, model.final_norm, ws.x.data());
  pass.logits(ws.x.data());
}

}  // namespace spinfer
