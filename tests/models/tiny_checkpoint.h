// Hugging Face directories made up on the spot: every tensor of a configuration with random weights, in any
// dtype, in one or many files; and files changed tensor by tensor, to damage them.
#pragma once

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "models/config.h"
#include "models/safetensors.h"
#include "models/safetensors_writer.h"
#include "models/weight_table.h"

namespace spinfer::test {

inline const char* const kTinyLlama =
    R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 40,
  "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
  "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2})";
inline const char* const kTinyOpt =
    R"({"architectures": ["OPTForCausalLM"], "model_type": "opt", "vocab_size": 40,
  "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24, "max_position_embeddings": 64,
  "bos_token_id": 2, "eos_token_id": 2})";

/// One tensor in host memory.
struct TinyTensor {
  std::string name;
  Dtype dtype = Dtype::f16;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;
};

template <class T>
std::vector<std::byte> to_bytes(const std::vector<T>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(T));
  if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

/// `values` stored as F16, BF16 or F32.
inline std::vector<std::byte> stored_as(Dtype dtype, const std::vector<float>& values) {
  if (dtype == Dtype::f32) return to_bytes(values);
  std::vector<uint16_t> words;
  for (const float f : values) {
    words.push_back(dtype == Dtype::f16 ? to_half(f).bits : uint16_t(std::bit_cast<uint32_t>(f) >> 16));
  }
  return to_bytes(words);
}

/// All tensors of the model; weights are multiples of 1/64 below 2, so that every dtype holds them exactly. A
/// share `zeros` of the weights of linears is zero.
inline std::vector<TinyTensor> tiny_tensors(const ModelConfig& config, Dtype dtype, double zeros = 0) {
  std::mt19937 random(5);
  std::vector<TinyTensor> tensors;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, double zero_share) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    std::vector<float> values;
    for (int64_t i = 0; i < count; ++i) {
      const float value = float(int(random() % 127) - 63) / 64;
      const bool zero = double(random() % 1000) < zero_share * 1000;
      values.push_back(zero ? 0.0f : value == 0 ? 0.5f : value);
    }
    tensors.push_back({name, dtype, std::move(shape), stored_as(dtype, values)});
  };
  const WeightTable table = weight_table(config);
  for (const TensorSpec& spec : table.other_tensors()) {
    add(spec.name, spec.cols > 0 ? std::vector{spec.rows, spec.cols} : std::vector{spec.rows}, 0);
  }
  for (const LayerSpec& layer : table.layers) {
    for (const LinearSpec* linear : layer.linears()) {
      for (const LinearPart& part : linear->parts) {
        add(part.name + ".weight", {part.m, linear->k}, zeros);
        if (linear->bias) add(part.name + ".bias", {part.m}, 0);
      }
    }
  }
  return tensors;
}

inline void write_tensors(const std::filesystem::path& file, const std::vector<TinyTensor>& tensors,
                          const std::map<std::string, std::string>& metadata = {}) {
  int64_t header = 256;
  for (const auto& t : tensors) header += safetensors_entry_bytes(t.name.size());
  for (const auto& [key, value] : metadata) header += int64_t(key.size() + value.size()) + 16;
  SafetensorsWriter writer(file, header);
  for (const auto& [key, value] : metadata) writer.set_metadata(key, value);
  for (const auto& t : tensors) writer.add(t.name, t.dtype, t.shape, t.bytes, 1);
  writer.finish();
}

inline void write_file(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

/// config.json and model.safetensors.
inline void write_checkpoint(const std::filesystem::path& dir, const std::string& config,
                             const std::vector<TinyTensor>& tensors) {
  std::filesystem::create_directories(dir);
  write_file(dir / "config.json", config);
  write_tensors(dir / "model.safetensors", tensors);
}

/// The same in `shards` files with an index.
inline void write_sharded(const std::filesystem::path& dir, const std::string& config,
                          const std::vector<TinyTensor>& tensors, size_t shards) {
  std::filesystem::create_directories(dir);
  write_file(dir / "config.json", config);
  nlohmann::json map;
  for (size_t s = 0; s < shards; ++s) {
    std::vector<TinyTensor> part;
    const std::string name = "shard-" + std::to_string(s) + ".safetensors";
    for (size_t i = s; i < tensors.size(); i += shards) {
      part.push_back(tensors[i]);
      map[tensors[i].name] = name;
    }
    write_tensors(dir / name, part);
  }
  write_file(dir / "model.safetensors.index.json", nlohmann::json{{"weight_map", map}}.dump());
}

/// Reads model.safetensors of `dir`, lets `change` work on tensors and metadata, and writes it again.
inline void change_file(
    const std::filesystem::path& dir,
    const std::function<void(std::vector<TinyTensor>&, std::map<std::string, std::string>&)>& change) {
  const auto path = dir / "model.safetensors";
  std::vector<TinyTensor> tensors;
  std::map<std::string, std::string> metadata;
  {
    const SafetensorsFile file(path);
    metadata = file.metadata();
    for (const auto& entry : file.tensors()) {
      const auto bytes = file.bytes(entry);
      tensors.push_back({entry.name, entry.dtype, entry.shape, {bytes.begin(), bytes.end()}});
    }
  }
  change(tensors, metadata);
  write_tensors(path, tensors, metadata);
}

}  // namespace spinfer::test
