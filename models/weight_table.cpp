#include "models/weight_table.h"

#include <algorithm>
#include <cassert>

#include "kernels/check.h"

namespace spinfer {
namespace {

/// What an architecture calls its tensors. Layer tensors follow "<layers><index>.".
struct Names {
  const char* embedding;
  const char* positions;
  const char* project_in;
  const char* project_out;
  const char* layers;
  const char* q;
  const char* k;
  const char* v;
  const char* attn_out;
  const char* gate;  ///< null: not gated
  const char* up;
  const char* down;
  const char* attn_norm;
  const char* mlp_norm;
  const char* final_norm;
};

constexpr Names kOptNames = {
    .embedding = "model.decoder.embed_tokens.weight",
    .positions = "model.decoder.embed_positions.weight",
    .project_in = "model.decoder.project_in",
    .project_out = "model.decoder.project_out",
    .layers = "model.decoder.layers.",
    .q = "self_attn.q_proj",
    .k = "self_attn.k_proj",
    .v = "self_attn.v_proj",
    .attn_out = "self_attn.out_proj",
    .gate = nullptr,
    .up = "fc1",
    .down = "fc2",
    .attn_norm = "self_attn_layer_norm",
    .mlp_norm = "final_layer_norm",
    .final_norm = "model.decoder.final_layer_norm",
};

// Qwen2 has LLaMA's names.
constexpr Names kLlamaNames = {
    .embedding = "model.embed_tokens.weight",
    .positions = nullptr,
    .project_in = nullptr,
    .project_out = nullptr,
    .layers = "model.layers.",
    .q = "self_attn.q_proj",
    .k = "self_attn.k_proj",
    .v = "self_attn.v_proj",
    .attn_out = "self_attn.o_proj",
    .gate = "mlp.gate_proj",
    .up = "mlp.up_proj",
    .down = "mlp.down_proj",
    .attn_norm = "input_layernorm",
    .mlp_norm = "post_attention_layernorm",
    .final_norm = "model.norm",
};

constexpr const char* kHead = "lm_head";

NormSpec norm_spec(const std::string& name, const ModelConfig& c) {
  if (!c.norm_affine) return {};
  NormSpec norm{{name + ".weight", c.hidden_size, 0}, {}};
  if (c.norm == NormKind::layer) norm.bias = {name + ".bias", c.hidden_size, 0};
  return norm;
}

LayerSpec layer_spec(const Names& names, const ModelConfig& c, int layer) {
  const std::string prefix = fmt::format("{}{}.", names.layers, layer);
  const int64_t d = c.hidden_size, f = c.ffn_size;
  LayerSpec spec;
  spec.attn_norm = norm_spec(prefix + names.attn_norm, c);
  spec.mlp_norm = norm_spec(prefix + names.mlp_norm, c);
  spec.qkv = {{{prefix + names.q, c.q_size(), Share::q_heads},
               {prefix + names.k, c.kv_size(), Share::kv_heads},
               {prefix + names.v, c.kv_size(), Share::kv_heads}},
              d,
              Share::all,
              c.qkv_bias};
  spec.attn_out = {{{prefix + names.attn_out, d, Share::all}}, c.q_size(), Share::q_heads, c.out_bias};
  spec.mlp_in = {{}, d, Share::all, c.mlp_bias, names.gate != nullptr};
  if (names.gate) spec.mlp_in.parts.push_back({prefix + names.gate, f, Share::ffn});
  spec.mlp_in.parts.push_back({prefix + names.up, f, Share::ffn});
  spec.mlp_out = {{{prefix + names.down, d, Share::all}}, f, Share::ffn, c.mlp_bias};
  return spec;
}

/// `size` in units of 64 (GroupTiles), the first ranks taking one unit more; finer units where there are
/// fewer than ranks.
Range share_units(int64_t size, Shard shard) {
  int64_t unit = 64;
  while (unit > 1 && (size + unit - 1) / unit < shard.world) unit /= 2;
  const int64_t units = (size + unit - 1) / unit, each = units / shard.world, more = units % shard.world;
  const auto begin = [&](int64_t rank) {
    return std::min(size, (rank * each + std::min(rank, more)) * unit);
  };
  return {begin(shard.rank), begin(shard.rank + 1)};
}

int64_t count(const TensorSpec& t) {
  return t.name.empty() ? 0 : t.rows * std::max<int64_t>(1, t.cols);
}
int64_t count(const LinearSpec& l) {
  return l.m() * l.k + (l.bias ? l.m() : 0);
}

}  // namespace

Range share_of(Share share, int64_t size, const ModelConfig& c, Shard shard) {
  assert(shard.world >= 1 && shard.rank >= 0 && shard.rank < shard.world);
  switch (share) {
    case Share::all:
      break;
    case Share::q_heads: {
      const int64_t each = c.q_size() / shard.world;
      return {shard.rank * each, (shard.rank + 1) * each};
    }
    case Share::kv_heads: {
      const int64_t heads = std::max(1, c.kv_heads / shard.world);
      const int64_t first = int64_t{shard.rank} * c.kv_heads / shard.world;
      return {first * c.head_dim, (first + heads) * c.head_dim};
    }
    case Share::ffn:
    case Share::vocab:
      return share_units(size, shard);
  }
  return {0, size};
}

ShardSizes::ShardSizes(const ModelConfig& c, Shard shard)
    : q_size(share_of(Share::q_heads, c.q_size(), c, shard).size()),
      kv_size(share_of(Share::kv_heads, c.kv_size(), c, shard).size()),
      ffn(share_of(Share::ffn, c.ffn_size, c, shard).size()),
      vocab(share_of(Share::vocab, c.vocab_size, c, shard)) {}

void check_tensor_parallel(const ModelConfig& c, int world) {
  constexpr int kMaxWorld = 64;
  const auto legal = [&](int w) {
    return c.q_heads % w == 0 && (c.kv_heads % w == 0 || w % c.kv_heads == 0) && c.ffn_size >= w &&
           c.vocab_size >= w;
  };
  if (world >= 1 && world <= kMaxWorld && legal(world)) return;
  std::vector<int> degrees;
  for (int w = 1; w <= kMaxWorld; ++w) {
    if (legal(w)) degrees.push_back(w);
  }
  throw UsageError(
      fmt::format("--tp {}: {} attention heads and {} key-value heads cannot be shared so; legal: {}", world,
                  c.q_heads, c.kv_heads, fmt::join(degrees, ", ")));
}

int64_t LinearSpec::m() const {
  int64_t sum = 0;
  for (const auto& part : parts) sum += part.m;
  return sum;
}

WeightTable weight_table(const ModelConfig& c) {
  const Names& names = c.architecture == Architecture::opt ? kOptNames : kLlamaNames;
  WeightTable table;
  table.embedding = {names.embedding, c.vocab_size, c.embed_size};
  if (names.positions)
    table.positions = {names.positions, c.max_positions + c.position_offset, c.hidden_size};
  if (c.embed_size != c.hidden_size) {
    table.project_in = {{{names.project_in, c.hidden_size, Share::all}}, c.embed_size, Share::all, false};
    table.project_out = {{{names.project_out, c.embed_size, Share::all}}, c.hidden_size, Share::all, false};
  }
  for (int layer = 0; layer < c.layers; ++layer) table.layers.push_back(layer_spec(names, c, layer));
  if (c.final_norm) table.final_norm = norm_spec(names.final_norm, c);
  if (!c.tied_head) table.head = {{{kHead, c.vocab_size, Share::vocab}}, c.embed_size, Share::all, false};
  return table;
}

std::vector<TensorSpec> WeightTable::other_tensors() const {
  std::vector<TensorSpec> tensors;
  const auto add = [&](const TensorSpec& t) {
    if (!t.name.empty()) tensors.push_back(t);
  };
  const auto add_norm = [&](const NormSpec& n) {
    add(n.gain);
    add(n.bias);
  };
  const auto add_linear = [&](const LinearSpec& l) {
    for (const auto& part : l.parts) add({part.name + ".weight", part.m, l.k});
  };
  add(embedding);
  add(positions);
  add_linear(project_in);
  add_linear(project_out);
  for (const auto& layer : layers) {
    add_norm(layer.attn_norm);
    add_norm(layer.mlp_norm);
  }
  add_norm(final_norm);
  add_linear(head);
  return tensors;
}

int64_t WeightTable::parameters() const {
  int64_t sum = 0;
  for (const auto& tensor : other_tensors()) sum += count(tensor);
  for (const auto& layer : layers) {
    for (const auto* linear : layer.linears()) sum += count(*linear);
  }
  return sum;
}

}  // namespace spinfer
