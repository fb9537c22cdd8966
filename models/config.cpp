#include "models/config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "kernels/check.h"
#include "models/json_text.h"

namespace spinfer {
namespace {

// Caps on sizes: OPT-175B (d = 12,288, f = 49,152, 96 layers) and Qwen2-72B (vocabulary 152,064) fit with
// room to spare, and no product of them overflows 64 bits.
constexpr int64_t kMaxVocab = 1 << 20;
constexpr int64_t kMaxHidden = 1 << 16;
constexpr int64_t kMaxFfn = 1 << 18;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxHeadDim = 512;
constexpr int64_t kMaxPositions = 1 << 24;

struct KnownArchitecture {
  const char* name;
  const char* model_type;
  Architecture architecture;
};
constexpr std::array kArchitectures = {
    KnownArchitecture{"OPTForCausalLM", "opt", Architecture::opt},
    KnownArchitecture{"LlamaForCausalLM", "llama", Architecture::llama},
    KnownArchitecture{"Qwen2ForCausalLM", "qwen2", Architecture::qwen2},
};
constexpr const char* kSupportedArchitectures = "OPTForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM";

struct KnownActivation {
  const char* name;
  Activation activation;
};
constexpr std::array kActivations = {
    KnownActivation{"relu", Activation::relu},
    KnownActivation{"gelu", Activation::gelu},
    KnownActivation{"gelu_new", Activation::gelu_tanh},
    KnownActivation{"gelu_fast", Activation::gelu_tanh},
    KnownActivation{"gelu_pytorch_tanh", Activation::gelu_tanh},
    KnownActivation{"silu", Activation::silu},
    KnownActivation{"swish", Activation::silu},
};

const KnownArchitecture& parse_architecture(const JsonFields& fields) {
  const auto* list = fields.find("architectures");
  const std::string type = fields.string("model_type", "");
  if (list) {
    check(list->is_array() && !list->empty() && list->front().is_string(),
          "{}: \"architectures\" is {}; must be a list with one name", fields.source(),
          printable_value(*list));
  }
  const std::string name = list ? list->front().get<std::string>() : "";
  check(list || !type.empty(), "{}: neither \"architectures\" nor \"model_type\" is there; supported: {}",
        fields.source(), kSupportedArchitectures);
  for (const auto& known : kArchitectures) {
    if (list ? name != known.name : type != known.model_type) continue;
    check(type.empty() || type == known.model_type, "{}: \"model_type\" is \"{}\" but {} is of type \"{}\"",
          fields.source(), printable(type), known.name, known.model_type);
    return known;
  }
  fail("{}: architecture \"{}\" is not supported; supported: {}", fields.source(),
       printable(list ? name : type), kSupportedArchitectures);
}

Activation parse_activation(const JsonFields& fields, const char* field, const char* fallback) {
  const std::string name = fields.string(field, fallback);
  for (const auto& known : kActivations) {
    if (name == known.name) return known.activation;
  }
  fail("{}: \"{}\" is \"{}\"; supported: relu, gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, silu, swish",
       fields.source(), field, printable(name));
}

void parse_heads(const JsonFields& fields, ModelConfig& c) {
  c.q_heads = int(fields.integer("num_attention_heads", 1, kMaxHeads));
  c.kv_heads = int(fields.integer("num_key_value_heads", 1, kMaxHeads, c.q_heads));
  check(c.q_heads % c.kv_heads == 0,
        "{}: \"num_attention_heads\" {} is no multiple of \"num_key_value_heads\" {}", fields.source(),
        c.q_heads, c.kv_heads);
  if (!fields.has("head_dim")) {
    check(c.hidden_size % c.q_heads == 0,
          "{}: \"hidden_size\" {} is no multiple of \"num_attention_heads\" {}", fields.source(),
          c.hidden_size, c.q_heads);
    check(c.hidden_size / c.q_heads <= kMaxHeadDim,
          "{}: {} features a head (hidden_size / num_attention_heads); at most {}", fields.source(),
          c.hidden_size / c.q_heads, kMaxHeadDim);
  }
  c.head_dim = int(fields.integer("head_dim", 1, kMaxHeadDim, c.hidden_size / c.q_heads));
  check(c.q_size() <= kMaxHidden, "{}: {} heads of {} are {} features; at most {}", fields.source(),
        c.q_heads, c.head_dim, c.q_size(), kMaxHidden);
}

/// What rotary positions are made from, as far as the file says it.
struct Rope {
  std::optional<double> theta;
  std::optional<RopeScaling> scaling;
};

std::optional<double> parse_theta(const JsonFields& fields) {
  constexpr double kMaxTheta = 1e12;
  return fields.has("rope_theta") ? std::optional(fields.number("rope_theta", 1, kMaxTheta)) : std::nullopt;
}

/// The object `field` of config.json; its "rope_theta" must agree with the one beside it.
Rope parse_rope_object(const JsonFields& fields, const char* field) {
  const JsonFields rope(*fields.find(field), fields.source() + ": \"" + field + "\"");
  const auto outer = parse_theta(fields), inner = parse_theta(rope);
  check(!outer || !inner || *outer == *inner, "{}: \"rope_theta\" is {} here and {} outside", rope.source(),
        inner.value_or(0), outer.value_or(0));
  Rope result{inner ? inner : outer, std::nullopt};
  const std::string type = rope.string("rope_type", rope.string("type", "default"));
  check(rope.string("type", type) == type, "{}: \"rope_type\" is \"{}\", \"type\" is \"{}\"", rope.source(),
        printable(type), printable(rope.string("type", type)));
  if (type == "default") return result;
  check(type == "llama3", "{}: type \"{}\" is not supported; supported: default, llama3", rope.source(),
        printable(type));
  RopeScaling s;
  s.factor = float(rope.number("factor", 1, 1024));
  s.low_freq_factor = float(rope.number("low_freq_factor", 1e-3, 1024));
  s.high_freq_factor = float(rope.number("high_freq_factor", 1e-3, 1024));
  s.original_max_positions = rope.integer("original_max_position_embeddings", 1, kMaxPositions);
  check(s.high_freq_factor > s.low_freq_factor,
        "{}: \"high_freq_factor\" {} must be above \"low_freq_factor\" {}", rope.source(), s.high_freq_factor,
        s.low_freq_factor);
  result.scaling = s;
  return result;
}

/// Both styles: "rope_theta" beside "rope_scaling", or both in "rope_parameters". Where a file has both, they
/// must agree.
void parse_rope(const JsonFields& fields, ModelConfig& c) {
  constexpr double kDefaultTheta = 10000;
  check(c.head_dim % 2 == 0, "{}: {} features a head; rotary positions need an even number", fields.source(),
        c.head_dim);
  check(fields.number("partial_rotary_factor", 0, 1, 1) == 1,
        "{}: \"partial_rotary_factor\" other than 1 is not supported", fields.source());
  const bool old_style = fields.has("rope_scaling"), new_style = fields.has("rope_parameters");
  Rope rope{parse_theta(fields), std::nullopt};
  if (old_style) rope = parse_rope_object(fields, "rope_scaling");
  if (new_style) {
    const Rope other = parse_rope_object(fields, "rope_parameters");
    const bool same_theta = !rope.theta || !other.theta || *rope.theta == *other.theta;
    check(!old_style || (same_theta && rope.scaling == other.scaling),
          "{}: \"rope_scaling\" and \"rope_parameters\" contradict each other", fields.source());
    rope = {other.theta ? other.theta : rope.theta, other.scaling};
  }
  c.rope_theta = float(rope.theta.value_or(kDefaultTheta));
  c.rope_scaling = rope.scaling;
}

/// One id or a list of them; `fallback` only where the field is absent (null: none).
std::vector<int32_t> parse_ids(const nlohmann::json& object, const char* field, int64_t vocab,
                               const std::string& source, std::vector<int32_t> fallback) {
  constexpr size_t kMaxIds = 64;
  const auto it = object.find(field);
  if (it == object.end()) {
    if (!fallback.empty() && fallback.front() >= vocab) return {};
    return fallback;
  }
  if (it->is_null()) return {};
  const auto list = it->is_array() ? *it : nlohmann::json::array({*it});
  check(list.size() <= kMaxIds, "{}: \"{}\" lists {} ids; at most {}", source, field, list.size(), kMaxIds);
  std::vector<int32_t> ids;
  for (const auto& id : list) {
    const bool fits = id.is_number_unsigned() && id.get<uint64_t>() < uint64_t(vocab);
    check(fits, "{}: \"{}\" is {}; must be from 0 to {} (vocab_size - 1)", source, field, printable_value(id),
          vocab - 1);
    if (std::find(ids.begin(), ids.end(), id.get<int32_t>()) == ids.end()) ids.push_back(id.get<int32_t>());
  }
  return ids;
}

void parse_opt(const JsonFields& fields, ModelConfig& c) {
  c.ffn_size = fields.integer("ffn_dim", 1, kMaxFfn);
  c.embed_size = fields.integer("word_embed_proj_dim", 1, kMaxHidden, c.hidden_size);
  c.kv_heads = c.q_heads;
  check(c.q_size() == c.hidden_size, "{}: {} heads of {} are not \"hidden_size\" {}", fields.source(),
        c.q_heads, c.head_dim, c.hidden_size);
  c.max_positions = fields.integer("max_position_embeddings", 1, kMaxPositions, 2048);
  c.activation = parse_activation(fields, "activation_function", "relu");
  c.norm = NormKind::layer;
  c.norm_eps = 1e-5f;  // torch.nn.LayerNorm's
  c.norm_before = fields.boolean("do_layer_norm_before", true);
  c.final_norm = c.norm_before && !fields.boolean("_remove_final_layer_norm", false);
  c.norm_affine = fields.boolean("layer_norm_elementwise_affine", true);
  c.tied_head = fields.boolean("tie_word_embeddings", true);
  c.gated_mlp = false;
  c.qkv_bias = c.out_bias = c.mlp_bias = fields.boolean("enable_bias", true);
  c.rope_theta = 0;
  c.position_offset = 2;
}

void parse_llama(const JsonFields& fields, ModelConfig& c) {
  const bool qwen2 = c.architecture == Architecture::qwen2;
  c.ffn_size = fields.integer("intermediate_size", 1, kMaxFfn);
  c.embed_size = c.hidden_size;
  c.max_positions = fields.integer("max_position_embeddings", 1, kMaxPositions, qwen2 ? 32768 : 2048);
  c.activation = parse_activation(fields, "hidden_act", "silu");
  c.norm = NormKind::rms;
  c.norm_eps = float(fields.number("rms_norm_eps", 1e-12, 1, 1e-6));
  c.tied_head = fields.boolean("tie_word_embeddings", false);
  c.qkv_bias = qwen2 || fields.boolean("attention_bias", false);
  c.out_bias = !qwen2 && fields.boolean("attention_bias", false);
  c.mlp_bias = !qwen2 && fields.boolean("mlp_bias", false);
  check(!qwen2 || !fields.boolean("use_sliding_window", false),
        "{}: \"use_sliding_window\" is true; only full attention is supported", fields.source());
  if (const auto* types = fields.find("layer_types")) {
    for (const auto& type : *types) {
      check(type == "full_attention", "{}: \"layer_types\" holds {}; only \"full_attention\" is supported",
            fields.source(), printable_value(type));
    }
  }
  parse_rope(fields, c);
}

}  // namespace

namespace {

/// compressed-tensors describes sparse weights where others describe quantised ones.
void check_compression(const JsonFields& fields) {
  const auto* compression = fields.find("quantization_config");
  if (!compression) return;
  const bool object = compression->is_object();
  const auto is_empty = [&](const char* name) {
    const auto it = compression->find(name);
    return it == compression->end() || it->empty();
  };
  const bool sparse_only = object &&
                           compression->value("quant_method", nlohmann::json()) == "compressed-tensors" &&
                           is_empty("config_groups");
  check(sparse_only, "{}: \"quantization_config\" is there; quantised checkpoints are not supported",
        fields.source());
  const auto sparsity = compression->value("sparsity_config", nlohmann::json::object());
  const auto format = sparsity.is_object() ? sparsity.value("format", nlohmann::json("dense")) : sparsity;
  check(format == "dense" || format == "sparse-bitmask",
        "{}: \"sparsity_config\" has the format {}; \"dense\" and \"sparse-bitmask\" are supported",
        fields.source(), printable_value(format));
}

}  // namespace

ModelConfig parse_config(std::string_view text, const std::string& source) {
  const nlohmann::json object = parse_json(text, source);
  const JsonFields fields(object, source);
  ModelConfig c;
  const auto& known = parse_architecture(fields);
  c.architecture = known.architecture;
  c.architecture_name = known.name;
  c.model_type = known.model_type;
  check_compression(fields);
  c.vocab_size = fields.integer("vocab_size", 1, kMaxVocab);
  c.hidden_size = fields.integer("hidden_size", 1, kMaxHidden);
  c.layers = int(fields.integer("num_hidden_layers", 1, kMaxLayers));
  parse_heads(fields, c);
  if (c.architecture == Architecture::opt) {
    parse_opt(fields, c);
  } else {
    parse_llama(fields, c);
  }
  // Hugging Face's defaults where the field is absent.
  const bool opt = c.architecture == Architecture::opt, llama = c.architecture == Architecture::llama;
  const auto bos = parse_ids(object, "bos_token_id", c.vocab_size, source,
                             opt     ? std::vector{2}
                             : llama ? std::vector{1}
                                     : std::vector<int32_t>{});
  c.bos_id = bos.empty() ? -1 : bos.front();
  c.eos_ids = parse_ids(object, "eos_token_id", c.vocab_size, source,
                        opt || llama ? std::vector{2} : std::vector<int32_t>{});
  return c;
}

ModelConfig load_config(const std::filesystem::path& path) {
  std::error_code error;
  const bool directory = std::filesystem::is_directory(path, error);
  if (!directory && !std::filesystem::exists(path, error))
    fail("{}: {}", path.string(), absence(path, "file or directory"));
  const auto file = directory ? path / "config.json" : path;
  ModelConfig c = parse_config(read_text_file(file, kMaxConfigBytes), file.string());
  const auto generation = path / "generation_config.json";
  if (directory && std::filesystem::exists(generation, error)) {
    const std::string source = generation.string();
    const auto object = parse_json(read_text_file(generation, kMaxConfigBytes), source);
    check(object.is_object(), "{}: must be a JSON object, is {}", source, printable_value(object));
    for (const int32_t id : parse_ids(object, "eos_token_id", c.vocab_size, source, {})) {
      if (std::find(c.eos_ids.begin(), c.eos_ids.end(), id) == c.eos_ids.end()) c.eos_ids.push_back(id);
    }
  }
  return c;
}

std::vector<float> ModelConfig::rope_inv_freq() const {
  if (rope_theta == 0) return {};
  std::vector<float> inv_freq(size_t(head_dim / 2));
  for (int i = 0; i < head_dim / 2; ++i) {
    double f = 1.0 / std::pow(double(rope_theta), 2.0 * i / head_dim);
    if (rope_scaling) {
      // LLaMA 3.1: rotations that turn fewer than low_freq_factor times over the original context are slowed
      // down by `factor`, those that turn more than high_freq_factor times are kept, in between the two are
      // mixed linearly.
      const RopeScaling& s = *rope_scaling;
      const double turns = double(s.original_max_positions) * f / (2 * std::numbers::pi);
      const double keep = std::clamp(
          (turns - s.low_freq_factor) / (double(s.high_freq_factor) - double(s.low_freq_factor)), 0.0, 1.0);
      f = keep * f + (1 - keep) * f / s.factor;
    }
    inv_freq[size_t(i)] = float(f);
  }
  return inv_freq;
}

}  // namespace spinfer
