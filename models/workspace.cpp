#include <algorithm>

#include "models/model.h"
#include "models/weight_table.h"

namespace spinfer {
namespace {

/// Elements of each array, in the order of Workspace's members.
struct Sizes {
  int64_t h, x, delta, qkv, attn, mlp, gated, moments, last, head_in, logits_shard, logits;

  Sizes(const ModelConfig& c, Shard shard, int64_t tokens, int64_t rows) {
    const int64_t d = c.hidden_size, widest = std::max(d, c.embed_size);
    const ShardSizes mine(c, shard);
    h = tokens * d;
    x = tokens * widest;
    delta = tokens * widest;
    qkv = tokens * (mine.q_size + 2 * mine.kv_size);
    attn = tokens * mine.q_size;
    mlp = tokens * mine.ffn * (c.gated_mlp ? 2 : 1);
    gated = c.gated_mlp ? tokens * mine.ffn : 0;
    moments = 2 * c.layers * moment_words(c.norm, kMostDeferringTokens);
    last = rows * d;
    head_in = c.embed_size != d ? rows * c.embed_size : 0;
    logits_shard = shard.world > 1 ? rows * mine.vocab.size() : 0;
    logits = rows * c.vocab_size;
  }
};

}  // namespace

Workspace::Workspace(Device& device, const Model& model, int tokens, int rows)
    : max_tokens(tokens), max_logits(rows) {
  const Sizes s(model.config, model.shard, tokens, rows);
  const auto halves = [&](int64_t size) { return DeviceArray<Half>(device, size, MemoryUse::workspace); };
  h = halves(s.h);
  x = halves(s.x);
  delta = halves(s.delta);
  qkv = halves(s.qkv);
  attn = halves(s.attn);
  mlp = halves(s.mlp);
  gated = halves(s.gated);
  moments = DeviceArray<uint64_t>(device, s.moments, MemoryUse::workspace);
  last = halves(s.last);
  head_in = halves(s.head_in);
  logits_shard = DeviceArray<float>(device, s.logits_shard, MemoryUse::workspace);
  logits = DeviceArray<float>(device, s.logits, MemoryUse::workspace);
}

int64_t Workspace::bytes(const ModelConfig& config, Shard shard, int max_tokens, int max_logits) {
  const Sizes s(config, shard, max_tokens, max_logits);
  return int64_t(sizeof(Half)) *
             (s.h + s.x + s.delta + s.qkv + s.attn + s.mlp + s.gated + s.last + s.head_in) +
         int64_t(sizeof(uint64_t)) * s.moments + int64_t(sizeof(float)) * (s.logits_shard + s.logits);
}

}  // namespace spinfer
