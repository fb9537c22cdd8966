// Checkpoint directories: what loads, and how damaged ones are refused.
#include "models/checkpoint.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <limits>

#include "kernels/check.h"
#include "models/checkpoint_tools.h"
#include "tests/models/model_runner.h"
#include "tests/models/tiny_checkpoint.h"
#include "tests/temporary_directory.h"

namespace spinfer::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Tensors = std::vector<TinyTensor>;
using Metadata = std::map<std::string, std::string>;

const std::vector<int32_t> kIds = {1, 5, 39, 7, 7, 0, 12};
constexpr const char* kQ0 = "model.layers.0.self_attn.q_proj.weight";

std::vector<float> logits_of(const fs::path& dir, const LoadOptions& options = {}) {
  return ModelRunner::load(dir, options, 1, 16).append(kIds);
}

TEST(Checkpoint, Fp32AndBf16EqualFp16WhereTheValuesDo) {
  for (const char* config : {kTinyLlama, kTinyOpt}) {
    const TemporaryDirectory dir;
    const ModelConfig c = parse_config(config, "test");
    for (const Dtype dtype : {Dtype::f16, Dtype::bf16, Dtype::f32}) {
      write_checkpoint(dir.path() / dtype_name(dtype), config, tiny_tensors(c, dtype));
    }
    const auto expected = logits_of(dir.path() / "F16");
    EXPECT_EQ(logits_of(dir.path() / "BF16"), expected);
    EXPECT_EQ(logits_of(dir.path() / "F32"), expected);
  }
}

TEST(Checkpoint, RoundsFp32ToTheNearestFp16) {
  const TemporaryDirectory dir;
  write_tensors(
      dir.path() / "model.safetensors",
      {{"w", Dtype::f32, {6}, stored_as(Dtype::f32, {1.0f, 0.1f, 1e-30f, -65519.0f, 6e-8f, 2049.0f})}});
  ThreadPool pool(1);
  const Checkpoint checkpoint(dir.path(), pool);
  const DenseMatrix w = checkpoint.tensor({"w", 6, 0});
  const float expected[] = {1.0f, 0.0999755859375f, 0.0f, -65504.0f, 0x1p-24f, 2048.0f};
  for (int i = 0; i < 6; ++i) EXPECT_EQ(to_float(w.data[i]), expected[i]) << i;
}

TEST(Checkpoint, ShardsEqualOneFile) {
  const TemporaryDirectory dir;
  const auto tensors = tiny_tensors(parse_config(kTinyOpt, "test"), Dtype::f16);
  write_checkpoint(dir.path() / "one", kTinyOpt, tensors);
  write_sharded(dir.path() / "many", kTinyOpt, tensors, 5);
  EXPECT_EQ(logits_of(dir.path() / "many"), logits_of(dir.path() / "one"));
}

TEST(Checkpoint, OneFileGoesBeforeAnIndexThatStayed) {
  TemporaryDirectory dir;
  const auto tensors = tiny_tensors(parse_config(kTinyOpt, "test"), Dtype::f16);
  write_checkpoint(dir.path(), kTinyOpt, tensors);
  write_file(dir.path() / "model.safetensors.index.json", R"({"weight_map": {"a": "gone.safetensors"}})");
  EXPECT_NO_THROW(ModelRunner::load(dir.path(), {}, 1, 16));
}

TEST(Checkpoint, NamesWithoutTheLeadingModel) {
  const TemporaryDirectory dir;
  auto tensors = tiny_tensors(parse_config(kTinyOpt, "test"), Dtype::f16);
  write_checkpoint(dir.path() / "long", kTinyOpt, tensors);
  for (auto& t : tensors) t.name = t.name.substr(std::string("model.").size());
  write_checkpoint(dir.path() / "short", kTinyOpt, tensors);
  EXPECT_EQ(logits_of(dir.path() / "short"), logits_of(dir.path() / "long"));
}

TEST(Checkpoint, TiedHeadMayBeThereOrNot) {
  const TemporaryDirectory dir;
  json tied = json::parse(kTinyLlama);
  tied["tie_word_embeddings"] = true;
  auto tensors = tiny_tensors(parse_config(tied.dump(), "test"), Dtype::f16);
  write_checkpoint(dir.path() / "without", tied.dump(), tensors);
  tensors.push_back({"lm_head.weight", Dtype::f16, {40, 16}, std::vector<std::byte>(40 * 16 * 2)});
  write_checkpoint(dir.path() / "with", tied.dump(), tensors);
  EXPECT_EQ(logits_of(dir.path() / "with"), logits_of(dir.path() / "without"));
}

TEST(Checkpoint, TensorsAtOddAddressesAreCopied) {
  const TemporaryDirectory dir;
  auto tensors = tiny_tensors(parse_config(kTinyLlama, "test"), Dtype::f16);
  write_checkpoint(dir.path() / "even", kTinyLlama, tensors);
  tensors.insert(tensors.begin(), {"flag", Dtype::boolean, {1}, {std::byte{1}}});
  write_checkpoint(dir.path() / "odd", kTinyLlama, tensors);
  EXPECT_EQ(logits_of(dir.path() / "odd"), logits_of(dir.path() / "even"));
}

TEST(Checkpoint, DenseWithZerosIsPackedAboveTheThreshold) {
  const TemporaryDirectory dir;
  write_checkpoint(dir.path() / "a", kTinyLlama,
                   tiny_tensors(parse_config(kTinyLlama, "test"), Dtype::f32, 0.5));
  for (const auto& [min_sparsity, sparse] :
       std::vector<std::pair<double, int>>{{0.3, 8}, {0.7, 0}, {0, 8}, {1, 0}}) {
    LoadOptions options;
    options.min_sparsity = min_sparsity;
    const auto runner = ModelRunner::load(dir.path() / "a", options, 1, 16);
    EXPECT_EQ(runner.model().report.sparse_linears, sparse) << min_sparsity;
    EXPECT_EQ(runner.model().report.dense_linears, 8 - sparse) << min_sparsity;
  }
}

/// True where this address of the process is a mapping of `file`.
bool is_mapped_from(const fs::path& file, const void* address) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    uintptr_t begin = 0, end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx", &begin, &end) != 2 || !line.ends_with(file.string())) continue;
    if (reinterpret_cast<uintptr_t>(address) >= begin && reinterpret_cast<uintptr_t>(address) < end)
      return true;
  }
  return false;
}

TEST(Checkpoint, PackedDirectoryIsUsedInPlace) {
  const TemporaryDirectory dir;
  json config = json::parse(kTinyLlama);  // heads and features in whole tiles
  config["hidden_size"] = config["intermediate_size"] = 128;
  write_checkpoint(dir.path() / "in", config.dump(),
                   tiny_tensors(parse_config(config.dump(), "test"), Dtype::f16, 0.5));
  ThreadPool pool(2);
  pack_checkpoint(dir.path() / "in", dir.path() / "out", 0.3, pool, {});
  auto runner = ModelRunner::load(dir.path() / "out", {}, 1, 16);
  for (const LayerWeights& layer : runner.model().layers) {
    for (const LinearWeight* w : {&layer.qkv, &layer.attn_out, &layer.mlp_in, &layer.mlp_out}) {
      ASSERT_FALSE(w->view.is_dense());
      EXPECT_TRUE(is_mapped_from(dir.path() / "out" / "model.safetensors", w->view.packed.bitmaps));
      EXPECT_TRUE(is_mapped_from(dir.path() / "out" / "model.safetensors", w->view.packed.values));
      EXPECT_EQ(reinterpret_cast<uintptr_t>(w->view.packed.bitmaps) % 64, 0u);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(w->view.packed.values) % 64, 0u);
    }
  }
  EXPECT_EQ(runner.append(kIds), logits_of(dir.path() / "in"));
}

std::string load_error(const fs::path& dir) {
  try {
    const ModelConfig config = load_config(dir);
    Device device(cpu_backend(), {.threads = 1});
    ThreadPool pool(2);
    load_model(dir, config, device, pool, {}, {});
    return "loaded";
  } catch (const Error& e) {
    return e.what();
  }
}

void expect_refusal(const fs::path& dir, const std::string& says) {
  const std::string message = load_error(dir);
  EXPECT_NE(message.find(says), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  EXPECT_EQ(message.find(dir.string()), 0u) << message;
  EXPECT_LT(message.size(), 600u);
}

TinyTensor& named(Tensors& tensors, const std::string& name) {
  return *std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.name == name; });
}

struct BadTensor {
  const char* name;
  Dtype dtype;
  std::function<void(Tensors&)> damage;
  const char* says;
};
std::function<void(Tensors&)> element(float value) {
  return [value](Tensors& tensors) {
    auto& t = named(tensors, kQ0);
    const auto bytes = stored_as(t.dtype, {value});
    std::copy(bytes.begin(), bytes.end(), t.bytes.begin() + 37 * int64_t(bytes.size()));
  };
}
constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();

const std::vector<BadTensor>& bad_tensors() {
  static const std::vector<BadTensor> cases = {
      {"linear_missing", Dtype::f16, [](Tensors& t) { named(t, kQ0).name = "other"; },
       "tensor model.layers.0.self_attn.q_proj.weight is missing"},
      {"norm_missing", Dtype::f16, [](Tensors& t) { named(t, "model.norm.weight").name = "other"; },
       "tensor model.norm.weight is missing"},
      {"head_missing", Dtype::f16, [](Tensors& t) { named(t, "lm_head.weight").name = "other"; },
       "tensor lm_head.weight is missing"},
      {"last_layer_missing", Dtype::f16,
       [](Tensors& t) {
         std::erase_if(t, [](const auto& x) { return x.name.find("layers.1") != std::string::npos; });
       },
       "model.layers.1."},
      {"transposed", Dtype::f16,
       [](Tensors& t) {
         named(t, "model.layers.0.mlp.up_proj.weight").shape = {16, 24};
       },
       "model.layers.0.mlp.up_proj.weight has shape [16, 24]; config.json makes it [24, 16]"},
      {"flat", Dtype::f16, [](Tensors& t) { named(t, kQ0).shape = {256}; }, "has shape [256]"},
      {"three_dimensions", Dtype::f16,
       [](Tensors& t) {
         named(t, kQ0).shape = {1, 16, 16};
       },
       "has shape [1, 16, 16]"},
      {"norm_of_two_dimensions", Dtype::f16,
       [](Tensors& t) {
         named(t, "model.norm.weight").shape = {1, 16};
       },
       "has shape [1, 16]; config.json makes it [16]"},
      {"vocabulary_smaller", Dtype::f16,
       [](Tensors& t) {
         auto& e = named(t, "model.embed_tokens.weight");
         e.shape = {39, 16};
         e.bytes.resize(39 * 16 * 2);
       },
       "model.embed_tokens.weight has shape [39, 16]; config.json makes it [40, 16]"},
      {"integer_weights", Dtype::f16, [](Tensors& t) { named(t, kQ0).dtype = Dtype::i16; },
       "has dtype I16; weights must be F16, BF16 or F32"},
      {"double_weights", Dtype::f16,
       [](Tensors& t) {
         named(t, kQ0).dtype = Dtype::f64;
         named(t, kQ0).bytes.resize(256 * 8);
       },
       "has dtype F64"},
      {"unexpected_bias", Dtype::f16,
       [](Tensors& t) {
         t.push_back({"model.layers.1.mlp.down_proj.bias", Dtype::f16, {16}, std::vector<std::byte>(32)});
       },
       "model.layers.1.mlp.down_proj.bias is there but config.json says the layer has no bias"},
      {"fp16_nan", Dtype::f16, element(kNan), "q_proj.weight: element 37 is nan"},
      {"fp16_infinity", Dtype::f16, element(-kInf), "q_proj.weight: element 37 is -inf"},
      {"bf16_nan", Dtype::bf16, element(kNan), "element 37 is nan; weights must be finite"},
      {"bf16_overflow", Dtype::bf16, element(131072.0f),
       "element 37 is 131072; weights must be finite and at most 65504"},
      {"fp32_nan", Dtype::f32, element(kNan), "element 37 is nan"},
      {"fp32_infinity", Dtype::f32, element(kInf), "element 37 is inf"},
      {"fp32_overflow", Dtype::f32, element(65520.0f), "element 37 is 65520"},
      {"norm_nan", Dtype::f32,
       [](Tensors& t) {
         named(t, "model.norm.weight").bytes = stored_as(Dtype::f32, std::vector<float>(16, kNan));
       },
       "model.norm.weight: element 0 is nan"},
  };
  return cases;
}

class RefusedTensor : public testing::TestWithParam<size_t> {};
TEST_P(RefusedTensor, IsNamed) {
  const BadTensor& bad = bad_tensors()[GetParam()];
  const TemporaryDirectory dir;
  auto tensors = tiny_tensors(parse_config(kTinyLlama, "test"), bad.dtype);
  bad.damage(tensors);
  write_checkpoint(dir.path(), kTinyLlama, tensors);
  expect_refusal(dir.path(), bad.says);
}
INSTANTIATE_TEST_SUITE_P(All, RefusedTensor, testing::Range<size_t>(0, bad_tensors().size()),
                         [](const auto& info) { return bad_tensors()[info.param].name; });

struct BadDirectory {
  const char* name;
  std::function<void(const fs::path&)> damage;  ///< of a directory sharded in three
  const char* says;
};
void change_index(const fs::path& dir, const std::function<void(json&)>& change) {
  json index = json::parse(std::ifstream(dir / "model.safetensors.index.json"));
  change(index);
  write_file(dir / "model.safetensors.index.json", index.dump());
}
std::function<void(const fs::path&)> shard_name(json name) {
  return [name](const fs::path& dir) {
    change_index(dir, [&](json& index) { index["weight_map"][kQ0] = name; });
  };
}

const std::vector<BadDirectory>& bad_directories() {
  static const std::vector<BadDirectory> cases = {
      {"nothing_there",
       [](const fs::path& dir) {
         for (const auto& entry : fs::directory_iterator(dir)) {
           if (entry.path().filename() != "config.json") fs::remove(entry);
         }
       },
       "neither model.safetensors nor model.safetensors.index.json is there"},
      {"only_pytorch",
       [](const fs::path& dir) {
         fs::remove(dir / "model.safetensors.index.json");
         write_file(dir / "pytorch_model.bin", "x");
       },
       "convert_pytorch_bin.py"},
      {"shard_missing", [](const fs::path& dir) { fs::remove(dir / "shard-1.safetensors"); },
       "shard-1.safetensors: "},
      {"shard_empty", [](const fs::path& dir) { write_file(dir / "shard-1.safetensors", ""); },
       "the file is empty"},
      {"shard_truncated",
       [](const fs::path& dir) {
         fs::resize_file(dir / "shard-2.safetensors", fs::file_size(dir / "shard-2.safetensors") - 1);
       },
       "shard-2.safetensors: tensor "},
      {"shard_is_a_directory",
       [](const fs::path& dir) {
         fs::remove(dir / "shard-1.safetensors");
         fs::create_directory(dir / "shard-1.safetensors");
       },
       "not a regular file"},
      {"tensor_not_in_its_shard",
       [](const fs::path& dir) {
         change_index(dir, [](json& index) { index["weight_map"]["model.extra"] = "shard-0.safetensors"; });
       },
       "tensor model.extra should be in shard-0.safetensors, which does not hold it"},
      {"tensor_not_in_the_index",
       [](const fs::path& dir) { change_index(dir, [](json& index) { index["weight_map"].erase(kQ0); }); },
       "q_proj.weight is missing"},
      {"index_cut_off",
       [](const fs::path& dir) { write_file(dir / "model.safetensors.index.json", "{\"weight_map\": {"); },
       "index.json: not valid JSON"},
      {"index_without_map",
       [](const fs::path& dir) { write_file(dir / "model.safetensors.index.json", "{}"); },
       "\"weight_map\" must be an object"},
      {"map_is_a_list",
       [](const fs::path& dir) { write_file(dir / "model.safetensors.index.json", R"({"weight_map": []})"); },
       "\"weight_map\" must be an object"},
      {"map_is_empty",
       [](const fs::path& dir) { write_file(dir / "model.safetensors.index.json", R"({"weight_map": {}})"); },
       "\"weight_map\" must be an object"},
      {"index_is_a_list", [](const fs::path& dir) { write_file(dir / "model.safetensors.index.json", "[]"); },
       "must be a JSON object"},
      {"index_too_large",
       [](const fs::path& dir) { fs::resize_file(dir / "model.safetensors.index.json", (16 << 20) + 1); },
       "at most 16777216 are accepted"},
      {"shard_number", shard_name(7), "the shard must be a file name, is 7"},
      {"shard_parent", shard_name("../shard-0.safetensors"),
       "\"../shard-0.safetensors\" is no file name inside"},
      {"shard_absolute", shard_name("/etc/passwd"), "\"/etc/passwd\" is no file name inside"},
      {"shard_folder", shard_name("sub/shard.safetensors"), "is no file name inside"},
      {"shard_dot", shard_name("."), "is no file name inside"},
      {"shard_dots", shard_name(".."), "is no file name inside"},
      {"shard_unnamed", shard_name(""), "is no file name inside"},
      {"shard_nul", shard_name(std::string("a\0b", 3)), "is no file name inside"},
      {"shard_link_out",
       [](const fs::path& dir) {
         const fs::path outside = dir.parent_path() / "outside.safetensors";
         fs::rename(dir / "shard-1.safetensors", outside);
         fs::create_symlink(outside, dir / "shard-1.safetensors");
       },
       "\"shard-1.safetensors\" is a link that leaves the directory"},
      {"shard_link_to_nothing",
       [](const fs::path& dir) {
         fs::remove(dir / "shard-1.safetensors");
         fs::create_symlink("absent", dir / "shard-1.safetensors");
       },
       "cannot be opened"},
      {"shard_link_to_itself",
       [](const fs::path& dir) {
         fs::remove(dir / "shard-1.safetensors");
         fs::create_symlink("shard-1.safetensors", dir / "shard-1.safetensors");
       },
       "cannot be opened"},
  };
  return cases;
}

class RefusedDirectory : public testing::TestWithParam<size_t> {};
TEST_P(RefusedDirectory, IsNamed) {
  const BadDirectory& bad = bad_directories()[GetParam()];
  const TemporaryDirectory parent;
  const fs::path dir = parent.path() / "model";
  write_sharded(dir, kTinyLlama, tiny_tensors(parse_config(kTinyLlama, "test"), Dtype::f16), 3);
  bad.damage(dir);
  expect_refusal(dir, bad.says);
}
INSTANTIATE_TEST_SUITE_P(All, RefusedDirectory, testing::Range<size_t>(0, bad_directories().size()),
                         [](const auto& info) { return bad_directories()[info.param].name; });

TEST(Checkpoint, LinksInsideTheDirectoryAndIntoTheHuggingFaceCacheAreFollowed) {
  const TemporaryDirectory cache;
  const fs::path dir = cache.path() / "snapshots" / "0123";
  write_sharded(dir, kTinyLlama, tiny_tensors(parse_config(kTinyLlama, "test"), Dtype::f16), 3);
  fs::rename(dir / "shard-0.safetensors", dir / "real");
  fs::create_symlink("real", dir / "shard-0.safetensors");
  fs::create_directory(cache.path() / "blobs");
  fs::rename(dir / "shard-1.safetensors", cache.path() / "blobs" / "abc");
  fs::create_symlink("../../blobs/abc", dir / "shard-1.safetensors");
  EXPECT_EQ(load_error(dir), "loaded");
}

struct BadPacked {
  const char* name;
  std::function<void(Tensors&, Metadata&)> damage;
  const char* says;
};
std::string packed_part(const char* what) {
  return std::string(kQ0) + kPackedSuffix + what;
}
std::function<void(Tensors&, Metadata&)> shape_text(const char* text) {
  return [text](Tensors&, Metadata& metadata) { metadata[packed_part("shape")] = text; };
}

const std::vector<BadPacked>& bad_packed() {
  static const std::vector<BadPacked> cases = {
      {"no_version", [](Tensors&, Metadata& m) { m.erase(kPackedVersionKey); }, "packed format version \"\""},
      {"later_version", [](Tensors&, Metadata& m) { m[kPackedVersionKey] = "2"; },
       "packed format version \"2\"; this program reads version 1"},
      {"no_shape", [](Tensors&, Metadata& m) { m.erase(packed_part("shape")); },
       "the metadata hold no \"M K\""},
      {"shape_of_one_number", shape_text("16"), "the metadata hold no \"M K\""},
      {"shape_of_three", shape_text("16 16 16"), "the metadata hold no \"M K\""},
      {"shape_of_words", shape_text("a b"), "the metadata hold no \"M K\""},
      {"shape_too_long", shape_text("99999999999999999999 16"), "the metadata hold no \"M K\""},
      {"shape_negative", shape_text("-16 16"), "-16 rows"},
      {"shape_zero", shape_text("0 16"), "0 rows"},
      {"shape_huge", shape_text("9223372036854775807 9223372036854775807"), "9223372036854775807 rows"},
      {"shape_of_more_tiles", shape_text("65 16"), "64 bitmaps, 65×16 needs 128"},
      {"shape_smaller", shape_text("15 16"), "bits in the padding of 15×16"},
      {"shape_not_the_configs", shape_text("17 16"), "has shape [17, 16]; config.json makes it [16, 16]"},
      {"values_missing", [](Tensors& t, Metadata&) { named(t, packed_part("values")).name = "other"; },
       "q_proj.weight.tca_bme.values is missing"},
      {"offsets_missing", [](Tensors& t, Metadata&) { named(t, packed_part("offsets")).name = "other"; },
       "q_proj.weight.tca_bme.offsets is missing"},
      {"bitmaps_missing", [](Tensors& t, Metadata&) { named(t, packed_part("bitmaps")).name = "other"; },
       "q_proj.weight is missing"},
      {"bitmaps_signed", [](Tensors& t, Metadata&) { named(t, packed_part("bitmaps")).dtype = Dtype::i64; },
       "they are I64, F16 and U32"},
      {"values_bf16", [](Tensors& t, Metadata&) { named(t, packed_part("values")).dtype = Dtype::bf16; },
       "they are U64, BF16 and U32"},
      {"offsets_float", [](Tensors& t, Metadata&) { named(t, packed_part("offsets")).dtype = Dtype::f32; },
       "they are U64, F16 and F32"},
      {"bitmaps_too_few",
       [](Tensors& t, Metadata&) {
         named(t, packed_part("bitmaps")).shape = {32};
         named(t, packed_part("bitmaps")).bytes.resize(256);
       },
       "32 bitmaps, 16×16 needs 64"},
      {"values_too_few",
       [](Tensors& t, Metadata&) {
         auto& v = named(t, packed_part("values"));
         v.bytes.resize(v.bytes.size() - 2);
         v.shape = {int64_t(v.bytes.size() / 2)};
       },
       "q_proj.weight"},
      {"values_too_many",
       [](Tensors& t, Metadata&) {
         auto& v = named(t, packed_part("values"));
         v.bytes.resize(v.bytes.size() + 2);
         v.shape = {int64_t(v.bytes.size() / 2)};
       },
       "q_proj.weight"},
      {"offsets_too_many",
       [](Tensors& t, Metadata&) {
         named(t, packed_part("offsets")).shape = {3};
         named(t, packed_part("offsets")).bytes.resize(12);
       },
       "3 offsets, 16×16 needs 2"},
      {"first_offset",
       [](Tensors& t, Metadata&) { named(t, packed_part("offsets")).bytes[0] = std::byte{1}; },
       "the first offset is 1, must be 0"},
      {"last_offset",
       [](Tensors& t, Metadata&) { named(t, packed_part("offsets")).bytes[7] = std::byte{0xff}; },
       "the bitmaps before it have"},
      {"bit_in_the_padding",
       [](Tensors& t, Metadata&) { named(t, packed_part("bitmaps")).bytes[511] = std::byte{0x80}; },
       "has bits in the padding"},
      {"value_nan",
       [](Tensors& t, Metadata&) {
         named(t, packed_part("values")).bytes[0] = std::byte{0x00};
         named(t, packed_part("values")).bytes[1] = std::byte{0x7e};
       },
       "weights must be finite"},
  };
  return cases;
}

class RefusedPacked : public testing::TestWithParam<size_t> {};
TEST_P(RefusedPacked, IsNamed) {
  const BadPacked& bad = bad_packed()[GetParam()];
  const TemporaryDirectory parent;
  const fs::path dir = parent.path() / "packed";
  write_checkpoint(parent.path() / "in", kTinyLlama,
                   tiny_tensors(parse_config(kTinyLlama, "test"), Dtype::f16, 0.5));
  ThreadPool pool(1);
  pack_checkpoint(parent.path() / "in", dir, 0.3, pool, {});
  // As other writers may order and align it: bitmaps first, then offsets, then the rest.
  change_file(dir, [&](Tensors& tensors, Metadata& metadata) {
    std::erase_if(tensors, [](const auto& t) { return t.name.starts_with("padding."); });
    bad.damage(tensors, metadata);
    const auto rank = [](const TinyTensor& t) {
      return t.dtype == Dtype::u64 || t.dtype == Dtype::i64   ? 0
             : t.dtype == Dtype::u32 || t.dtype == Dtype::f32 ? 1
                                                              : 2;
    };
    std::stable_sort(tensors.begin(), tensors.end(),
                     [&](const auto& a, const auto& b) { return rank(a) < rank(b); });
  });
  expect_refusal(dir, bad.says);
}
INSTANTIATE_TEST_SUITE_P(All, RefusedPacked, testing::Range<size_t>(0, bad_packed().size()),
                         [](const auto& info) { return bad_packed()[info.param].name; });

}  // namespace
}  // namespace spinfer::test
