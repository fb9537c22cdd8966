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
  embed_llama(pass);
  pass.logits(pass.pre_norm_layers());
}

}  // namespace spinfer
