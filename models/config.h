// Hyper-parameters of a model, as config.json (Hugging Face) states them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/ops.h"

namespace spinfer {

enum class Architecture { opt, llama, qwen2 };

/// "llama3" rope scaling (LLaMA 3.1): long wavelengths are stretched by `factor`, short ones kept, smooth in
/// between.
struct RopeScaling {
  float factor = 1;
  float low_freq_factor = 1;
  float high_freq_factor = 4;
  int64_t original_max_positions = 0;
  bool operator==(const RopeScaling&) const = default;
};

/// Validated by `parse_config`: every number is in its documented range, heads divide, sizes do not overflow.
struct ModelConfig {
  Architecture architecture = Architecture::llama;
  std::string architecture_name;  ///< "LlamaForCausalLM", "OPTForCausalLM", "Qwen2ForCausalLM"
  std::string model_type;         ///< "llama", "opt", "qwen2"
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;  ///< d
  int64_t embed_size = 0;   ///< OPT's word_embed_proj_dim; = hidden_size elsewhere
  int64_t ffn_size = 0;     ///< f
  int layers = 0;
  int q_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int64_t max_positions = 0;
  Activation activation = Activation::silu;
  NormKind norm = NormKind::rms;
  float norm_eps = 1e-5f;
  bool norm_before = true;  ///< pre-norm; false: OPT-350m
  bool final_norm = true;
  bool norm_affine = true;  ///< OPT's layer_norm_elementwise_affine
  bool tied_head = false;
  bool gated_mlp = true;  ///< gate/up/down (LLaMA) or fc1/fc2 (OPT)
  bool qkv_bias = false;
  bool out_bias = false;  ///< attention output projection
  bool mlp_bias = false;
  float rope_theta = 0;  ///< 0: no rotation (OPT has learned positions)
  std::optional<RopeScaling> rope_scaling;
  int position_offset = 0;  ///< OPT: 2
  int32_t bos_id = -1;      ///< -1: none
  std::vector<int32_t> eos_ids;

  int64_t q_size() const { return int64_t{q_heads} * head_dim; }
  int64_t kv_size() const { return int64_t{kv_heads} * head_dim; }
  /// 1/theta^(2i/head_dim) for i < head_dim/2, scaling applied; empty without rotation.
  std::vector<float> rope_inv_freq() const;
};

/// Parses config.json text (untrusted). `source` begins error messages, which name the field, its value and
/// the legal range. Unknown architectures, activations and rope scalings are refused with the list of
/// supported ones.
ModelConfig parse_config(std::string_view json, const std::string& source);

/// Reads `path`: a config.json or a directory holding one (generation_config.json, if there, adds end-of-text
/// ids).
ModelConfig load_config(const std::filesystem::path& path);

}  // namespace spinfer
