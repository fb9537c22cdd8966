// Checkpoints that others wrote sparse, and the way back to dense files.
#include <gtest/gtest.h>

#include <functional>

#include "kernels/check.h"
#include "models/checkpoint.h"
#include "models/checkpoint_tools.h"
#include "tests/models/tiny_checkpoint.h"
#include "tests/temporary_directory.h"

namespace spinfer::test {
namespace {

namespace fs = std::filesystem;

const char* const kCompressedConfig =
    R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 40,
  "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
  "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
  "quantization_config": {"quant_method": "compressed-tensors", "format": "dense", "config_groups": {},
    "sparsity_config": {"format": "sparse-bitmask", "sparsity_structure": "unstructured"}}})";

/// The four tensors that compressed-tensors makes of one matrix.
std::vector<TinyTensor> as_bitmask(const TinyTensor& dense) {
  const auto element = size_t(dtype_bytes(dense.dtype));
  const int64_t m = dense.shape[0], k = dense.shape[1], row_bytes = (k + 7) / 8;
  std::vector<uint8_t> bits(size_t(m * row_bytes));
  std::vector<std::byte> values;
  std::vector<int64_t> offsets;
  for (int64_t row = 0; row < m; ++row) {
    offsets.push_back(int64_t(values.size() / element));
    for (int64_t col = 0; col < k; ++col) {
      const auto* at = dense.bytes.data() + size_t(row * k + col) * element;
      if (std::all_of(at, at + element, [](std::byte b) { return b == std::byte{}; })) continue;
      bits[size_t(row * row_bytes + col / 8)] |= uint8_t(1u << (col % 8));
      values.insert(values.end(), at, at + element);
    }
  }
  const auto count = int64_t(values.size() / element);
  return {{dense.name + ".bitmask", Dtype::u8, {m, row_bytes}, to_bytes(bits)},
          {dense.name + ".compressed", dense.dtype, {count}, values},
          {dense.name + ".row_offsets", Dtype::i64, {m}, to_bytes(offsets)},
          {dense.name + ".shape", Dtype::i64, {2}, to_bytes(std::vector<int64_t>{m, k})}};
}

struct Import {
  TemporaryDirectory dir;
  fs::path dense = dir.path() / "dense", compressed = dir.path() / "compressed", out = dir.path() / "out";
  ThreadPool pool{2};
  ModelConfig config = parse_config(kTinyLlama, "test");
  std::vector<TinyTensor> tensors;

  explicit Import(Dtype dtype) : tensors(tiny_tensors(config, dtype, 0.6)) {
    write_checkpoint(dense, kTinyLlama, tensors);
    write_compressed([](auto&) {});
  }
  void write_compressed(const std::function<void(std::vector<TinyTensor>&)>& damage) {
    std::vector<TinyTensor> all;
    for (const TinyTensor& t : tensors) {
      const bool linear = t.name.find("_proj.weight") != std::string::npos;
      const auto parts = linear ? as_bitmask(t) : std::vector{t};
      all.insert(all.end(), parts.begin(), parts.end());
    }
    damage(all);
    write_checkpoint(compressed, kCompressedConfig, all);
  }
  std::string pack_error() {
    try {
      pack_checkpoint(compressed, out, 0.3, pool, {});
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }
};

std::string bytes_of_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(SparseBitmask, PacksToTheBytesOfTheDenseCheckpoint) {
  for (const Dtype dtype : {Dtype::f16, Dtype::bf16, Dtype::f32}) {
    Import import(dtype);
    const fs::path expected = import.dir.path() / "expected";
    pack_checkpoint(import.dense, expected, 0.3, import.pool, {});
    pack_checkpoint(import.compressed, import.out, 0.3, import.pool, {});
    EXPECT_EQ(bytes_of_file(import.out / "model.safetensors"), bytes_of_file(expected / "model.safetensors"));
    EXPECT_EQ(bytes_of_file(import.out / "config.json").find("quantization_config"), std::string::npos)
        << "what was written is not in that format any more";
  }
}

TEST(SparseBitmask, BlocksOfAMatrix) {
  Import import(Dtype::bf16);
  const Checkpoint dense(import.dense, import.pool), compressed(import.compressed, import.pool);
  const std::string name = "model.layers.1.mlp.down_proj.weight";
  EXPECT_TRUE(compressed.contains(name));
  const DenseMatrix a = dense.dense_block(name, 16, 24, {3, 11}, {5, 20});
  const DenseMatrix b = compressed.dense_block(name, 16, 24, {3, 11}, {5, 20});
  EXPECT_TRUE(std::equal(a.data, a.data + a.m * a.k, b.data));
}

TEST(SparseBitmask, DamageIsRefusedByName) {
  const std::string name = "model.layers.0.mlp.down_proj.weight";
  struct Damage {
    std::string suffix;
    std::function<void(TinyTensor&)> change;
    std::string says;
  };
  const std::vector<Damage> damages = {
      {".bitmask", [](TinyTensor& t) { t.bytes[0] ^= std::byte{1}; }, "bits are set for"},
      {".bitmask",
       [](TinyTensor& t) {
         t.shape = {t.shape[1], t.shape[0]};
       },
       "makes it U8 [16, 3]"},
      {".bitmask", [](TinyTensor& t) { t.dtype = Dtype::i8; }, "I8"},
      {".compressed", [](TinyTensor& t) { t.name += "x"; }, ".compressed is missing"},
      {".compressed", [](TinyTensor& t) { t.dtype = Dtype::i16; }, "dtype I16"},
      {".compressed", [](TinyTensor& t) { t.bytes[0] = std::byte{0xff}, t.bytes[1] = std::byte{0x7f}; },
       "finite"},
  };
  for (const Damage& damage : damages) {
    Import import(Dtype::f16);
    import.write_compressed([&](std::vector<TinyTensor>& all) {
      for (TinyTensor& t : all)
        if (t.name == name + damage.suffix) damage.change(t);
  });
  const std::string error = import.pack_error();
  EXPECT_NE(error.find(name), std::string::npos) << error;
  EXPECT_NE(error.find(damage.says), std::string::npos) << error;
  EXPECT_FALSE(fs::exists(import.out));
}
}  // namespace

TEST(SparseBitmask, BitsBeyondTheColumnsAreRefused) {
  ThreadPool pool(1);
  const std::byte bits[] = {std::byte{0x01}, std::byte{0x08}}, values[4] = {};
  try {
    expand_bitmask(bits, values, 1, 11, 2, pool, "matrix");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("matrix: row 0 has bits set beyond its 11 columns"),
              std::string::npos);
  }
}

TEST(SparseBitmask, OtherCompressionIsRefused) {
  for (const auto& [from, to] : std::vector<std::pair<std::string, std::string>>{
           {"compressed-tensors", "gptq"},
           {"sparse-bitmask", "sparse-24-bitmask"},
           {R"("config_groups": {})", R"("config_groups": {"group_0": {"weights": {"num_bits": 4}}})"}}) {
    std::string text = kCompressedConfig;
    text.replace(text.find(from), from.size(), to);
    EXPECT_THROW(parse_config(text, "config.json"), Error) << to;
  }
  EXPECT_NO_THROW(parse_config(kCompressedConfig, "config.json"));
}

TEST(Unpack, GivesBackEveryBit) {
  Import import(Dtype::f16);
  const fs::path back = import.dir.path() / "back";
  pack_checkpoint(import.dense, import.out, 0.3, import.pool, {});
  unpack_checkpoint(import.out, back, import.pool, {});
  const SafetensorsFile before(import.dense / "model.safetensors"), after(back / "model.safetensors");
  ASSERT_EQ(after.tensors().size(), before.tensors().size());
  for (const TensorEntry& entry : before.tensors()) {
    const TensorEntry* found = after.find(entry.name);
    ASSERT_NE(found, nullptr) << entry.name;
    EXPECT_EQ(found->shape, entry.shape);
    const auto a = before.bytes(entry), b = after.bytes(*found);
    EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end())) << entry.name;
  }
}

}  // namespace spinfer::test
}  // namespace spinfer::test
