#include "models/config.h"

#include <gtest/gtest.h>

#include <cctype>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "kernels/check.h"
#include "models/checkpoint_tools.h"
#include "tests/temporary_directory.h"
#include "tests/test_paths.h"

namespace spinfer::test {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

json opt_json() {
  return json::parse(R"({"architectures": ["OPTForCausalLM"], "model_type": "opt", "vocab_size": 640,
    "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 8, "ffn_dim": 512,
    "max_position_embeddings": 256})");
}
json llama_json() {
  return json::parse(R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 640,
    "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 8, "intermediate_size": 352,
    "max_position_embeddings": 256})");
}
json qwen2_json() {
  json c = llama_json();
  c["architectures"] = {"Qwen2ForCausalLM"};
  c["model_type"] = "qwen2";
  return c;
}
ModelConfig parse(const json& c) {
  return parse_config(c.dump(), "config.json");
}

struct KnownSize {
  const char* file;
  int64_t parameters;
};
class BundledConfig : public testing::TestWithParam<KnownSize> {};

// num_parameters() of the published checkpoints; OPT-66B's and OPT-175B's worked out by hand from their
// dimensions.
TEST_P(BundledConfig, HasThePublishedNumberOfParameters) {
  const auto [file, parameters] = GetParam();
  const ModelConfig c = load_config(test::source_directory() / "configs" / "models" / file);
  EXPECT_EQ(plan_weights(c, 0, {}).parameters, parameters);
  EXPECT_FALSE(c.eos_ids.empty());
}
INSTANTIATE_TEST_SUITE_P(
    All, BundledConfig,
    testing::Values(KnownSize{"opt-125m.json", 125'239'296}, KnownSize{"opt-350m.json", 331'196'416},
                    KnownSize{"opt-1.3b.json", 1'315'758'080}, KnownSize{"opt-2.7b.json", 2'651'596'800},
                    KnownSize{"opt-6.7b.json", 6'658'473'984}, KnownSize{"opt-13b.json", 12'853'473'280},
                    KnownSize{"opt-30b.json", 29'974'540'288}, KnownSize{"opt-66b.json", 65'719'701'504},
                    KnownSize{"opt-175b.json", 174'604'468'224}, KnownSize{"llama-2-7b.json", 6'738'415'616},
                    KnownSize{"llama-2-13b.json", 13'015'864'320},
                    KnownSize{"llama-2-70b.json", 68'976'648'192},
                    KnownSize{"llama-3-8b.json", 8'030'261'248},
                    KnownSize{"llama-3-70b.json", 70'553'706'496}, KnownSize{"qwen2-7b.json", 7'615'616'512},
                    KnownSize{"qwen2-72b.json", 72'706'203'648}),
    [](const auto& info) {
      std::string name = info.param.file;
      for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
      return name;
    });

TEST(Config, OptDefaultsAreHuggingFaces) {
  const ModelConfig c = parse(opt_json());
  EXPECT_EQ(c.architecture, Architecture::opt);
  EXPECT_EQ(c.embed_size, 128);
  EXPECT_EQ(c.activation, Activation::relu);
  EXPECT_TRUE(c.norm_before && c.final_norm && c.norm_affine && c.tied_head && c.qkv_bias && c.out_bias &&
              c.mlp_bias);
  EXPECT_FALSE(c.gated_mlp);
  EXPECT_EQ(c.position_offset, 2);
  EXPECT_EQ(c.bos_id, 2);
  EXPECT_EQ(c.eos_ids, std::vector<int32_t>{2});
  EXPECT_TRUE(c.rope_inv_freq().empty());
}

TEST(Config, Opt350mStyle) {
  json j = opt_json();
  j["do_layer_norm_before"] = false;
  j["word_embed_proj_dim"] = 64;
  j["enable_bias"] = false;
  j["layer_norm_elementwise_affine"] = false;
  j["activation_function"] = "gelu";
  const ModelConfig c = parse(j);
  EXPECT_FALSE(c.norm_before || c.final_norm || c.qkv_bias || c.norm_affine);
  EXPECT_EQ(c.embed_size, 64);
  EXPECT_EQ(c.activation, Activation::gelu);
}

TEST(Config, RemovedFinalNorm) {
  json j = opt_json();
  j["_remove_final_layer_norm"] = true;
  EXPECT_FALSE(parse(j).final_norm);
}

TEST(Config, LlamaOptions) {
  json j = llama_json();
  j["num_key_value_heads"] = 2;
  j["head_dim"] = 32;
  j["attention_bias"] = true;
  j["mlp_bias"] = true;
  j["tie_word_embeddings"] = true;
  j["eos_token_id"] = {3, 4, 3};
  j["bos_token_id"] = nullptr;
  const ModelConfig c = parse(j);
  EXPECT_EQ(c.q_size(), 256);
  EXPECT_EQ(c.kv_size(), 64);
  EXPECT_TRUE(c.qkv_bias && c.out_bias && c.mlp_bias && c.tied_head && c.gated_mlp);
  EXPECT_EQ(c.eos_ids, (std::vector<int32_t>{3, 4}));
  EXPECT_EQ(c.bos_id, -1);
  EXPECT_FLOAT_EQ(c.rope_theta, 10000);
}

TEST(Config, Qwen2HasAQkvBiasOnly) {
  const ModelConfig c = parse(qwen2_json());
  EXPECT_TRUE(c.qkv_bias);
  EXPECT_FALSE(c.out_bias || c.mlp_bias);
  EXPECT_EQ(c.bos_id, -1);
  EXPECT_TRUE(c.eos_ids.empty());
}

TEST(Config, RopeThetaAndScalingInEitherStyle) {
  const json scaling = {{"factor", 8.0},
                        {"low_freq_factor", 1.0},
                        {"high_freq_factor", 4.0},
                        {"original_max_position_embeddings", 64}};
  std::vector<json> styles(5, llama_json());
  styles[0]["rope_theta"] = 500000.0;
  styles[0]["rope_scaling"] = scaling;
  styles[0]["rope_scaling"]["rope_type"] = "llama3";
  styles[1]["rope_theta"] = 500000.0;
  styles[1]["rope_scaling"] = scaling;
  styles[1]["rope_scaling"]["type"] = "llama3";
  styles[2]["rope_parameters"] = scaling;
  styles[2]["rope_parameters"]["rope_type"] = "llama3";
  styles[2]["rope_parameters"]["rope_theta"] = 500000.0;
  styles[3] = styles[2];  // both, saying the same
  styles[3]["rope_theta"] = 500000.0;
  styles[3]["rope_scaling"] = styles[0]["rope_scaling"];
  styles[4] = styles[2];  // the old one says nothing of theta
  styles[4]["rope_scaling"] = styles[1]["rope_scaling"];
  for (const json& j : styles) {
    const ModelConfig c = parse(j);
    EXPECT_FLOAT_EQ(c.rope_theta, 500000);
    ASSERT_TRUE(c.rope_scaling.has_value());
    EXPECT_EQ(c.rope_scaling->original_max_positions, 64);
    const auto inv_freq = c.rope_inv_freq();
    ASSERT_EQ(inv_freq.size(), 8u);
    EXPECT_FLOAT_EQ(inv_freq[0], 1);  // turns 10 times in 64 positions: kept
    EXPECT_FLOAT_EQ(inv_freq[7], float(std::pow(500000.0, -14.0 / 16) / 8));
    // Turns 1.98 times, between the factors 1 and 4: 0.325 of it kept.
    const double f = std::pow(500000.0, -2.0 / 16), keep = (64 * f / (2 * M_PI) - 1) / 3;
    EXPECT_NEAR(inv_freq[1], keep * f + (1 - keep) * f / 8, 1e-6);
  }
}

TEST(Config, GenerationConfigAddsEndOfText) {
  const TemporaryDirectory dir;
  dir.write("config.json", llama_json().dump());
  dir.write("generation_config.json", R"({"eos_token_id": [7, 2]})");
  EXPECT_EQ(load_config(dir.path()).eos_ids, (std::vector<int32_t>{2, 7}));
  EXPECT_EQ(load_config(dir.path() / "config.json").eos_ids, (std::vector<int32_t>{2}));
}

struct BadConfig {
  const char* name;
  std::function<std::string()> text;
  const char* says;  ///< must be in the message
};
std::string with(json base, const char* field, json value) {
  base[field] = std::move(value);
  return base.dump();
}
std::string without(json base, const char* field) {
  base.erase(field);
  return base.dump();
}
std::string with_rope(const char* field, json value) {
  json rope = {{"rope_type", "llama3"},
               {"factor", 8.0},
               {"low_freq_factor", 1.0},
               {"high_freq_factor", 4.0},
               {"original_max_position_embeddings", 64}};
  rope[field] = std::move(value);
  return with(llama_json(), "rope_scaling", rope);
}

const std::vector<BadConfig>& bad_configs() {
  static const std::vector<BadConfig> cases = {
      {"empty", [] { return ""; }, "not valid JSON"},
      {"not_json", [] { return "hello"; }, "line 1, column 1"},
      {"cut_off", [] { return opt_json().dump().substr(0, 60); }, "not valid JSON"},
      {"trailing_garbage", [] { return opt_json().dump() + "x"; }, "not valid JSON"},
      {"garbage_behind_a_nul", [] { return opt_json().dump() + '\0' + "x"; }, "a NUL byte"},
      {"list", [] { return "[]"; }, "must be a JSON object"},
      {"string", [] { return "\"x\""; }, "must be a JSON object"},
      {"deep", [] { return std::string(100000, '['); }, "nested deeper than 32"},
      {"deep_object",
       [] {
         std::string s;
         for (int i = 0; i < 5000; ++i) s += "{\"a\":";
         return s;
       },
       "nested deeper than 32"},
      {"many_values",
       [] {
         std::string s = "[0";
         while (s.size() < 2'100'000) s += ",0";
         return s + "]";
       },
       "more than 1000000 values"},
      {"duplicate_key", [] { return R"({"vocab_size": 1, "vocab_size": 2})"; },
       "\"vocab_size\" appears twice"},
      {"huge_number", [] { return with(opt_json(), "vocab_size", 1e300); }, "\"vocab_size\" is 1e+300"},
      {"number_overflow", [] { return R"({"vocab_size": 1e999})"; }, "not valid JSON"},
      {"invalid_utf8", [] { return "{\"a\": \"\xff\xfe\"}"; }, "not valid JSON"},
      {"no_architecture",
       [] { return without(json::parse(without(opt_json(), "architectures")), "model_type"); },
       "supported: OPTForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM"},
      {"unknown_architecture", [] { return with(opt_json(), "architectures", {"GPT2LMHeadModel"}); },
       "\"GPT2LMHeadModel\" is not supported; supported: OPT"},
      {"unknown_type",
       [] { return with(json::parse(without(opt_json(), "architectures")), "model_type", "mamba"); },
       "\"mamba\" is not supported"},
      {"contradicting_type", [] { return with(opt_json(), "model_type", "llama"); }, "is of type \"opt\""},
      {"architectures_string", [] { return with(opt_json(), "architectures", "OPTForCausalLM"); },
       "must be a list with one name"},
      {"architectures_empty", [] { return with(opt_json(), "architectures", json::array()); },
       "must be a list"},
      {"architecture_number", [] { return with(opt_json(), "architectures", {7}); }, "must be a list"},
      {"control_characters", [] { return with(opt_json(), "architectures", {"a\nb\x1b[31m"}); },
       "\"a?b?[31m\""},
      {"no_vocab", [] { return without(opt_json(), "vocab_size"); }, "\"vocab_size\" is missing"},
      {"null_vocab", [] { return with(opt_json(), "vocab_size", nullptr); }, "\"vocab_size\" is missing"},
      {"vocab_string", [] { return with(opt_json(), "vocab_size", "640"); },
       "must be an integer from 1 to 1048576"},
      {"vocab_fraction", [] { return with(opt_json(), "vocab_size", 640.5); }, "must be an integer"},
      {"vocab_zero", [] { return with(opt_json(), "vocab_size", 0); }, "\"vocab_size\" is 0"},
      {"vocab_negative", [] { return with(opt_json(), "vocab_size", -5); }, "\"vocab_size\" is -5"},
      {"vocab_absurd", [] { return with(opt_json(), "vocab_size", int64_t{1} << 40); },
       "must be an integer from 1 to"},
      {"vocab_uint64", [] { return with(opt_json(), "vocab_size", UINT64_MAX); },
       "\"vocab_size\" is 18446744073709551615"},
      {"hidden_absurd", [] { return with(opt_json(), "hidden_size", int64_t{1} << 62); }, "\"hidden_size\""},
      {"hidden_bool", [] { return with(opt_json(), "hidden_size", true); }, "\"hidden_size\" is true"},
      {"layers_absurd", [] { return with(opt_json(), "num_hidden_layers", 2'000'000'000); },
       "\"num_hidden_layers\""},
      {"layers_zero", [] { return with(opt_json(), "num_hidden_layers", 0); }, "\"num_hidden_layers\" is 0"},
      {"heads_zero", [] { return with(opt_json(), "num_attention_heads", 0); },
       "\"num_attention_heads\" is 0"},
      {"heads_do_not_divide", [] { return with(opt_json(), "num_attention_heads", 7); }, "no multiple of"},
      {"kv_heads_do_not_divide", [] { return with(llama_json(), "num_key_value_heads", 3); },
       "no multiple of"},
      {"kv_heads_zero", [] { return with(llama_json(), "num_key_value_heads", 0); },
       "\"num_key_value_heads\" is 0"},
      {"head_dim_odd", [] { return with(llama_json(), "head_dim", 15); }, "even number"},
      {"head_dim_absurd", [] { return with(llama_json(), "head_dim", 1 << 20); }, "\"head_dim\" is 1048576"},
      {"head_dim_of_opt", [] { return with(opt_json(), "head_dim", 32); }, "are not \"hidden_size\" 128"},
      {"heads_times_dim",
       [] {
         json j = llama_json();
         j["hidden_size"] = 65536;
         j["num_attention_heads"] = 1024;
         j["head_dim"] = 512;
         return j.dump();
       },
       "features; at most 65536"},
      {"one_huge_head",
       [] {
         json j = llama_json();
         j["hidden_size"] = 65536;
         j["num_attention_heads"] = 1;
         return j.dump();
       },
       "features a head"},
      {"ffn_missing", [] { return without(llama_json(), "intermediate_size"); },
       "\"intermediate_size\" is missing"},
      {"ffn_absurd", [] { return with(opt_json(), "ffn_dim", 1e15); }, "\"ffn_dim\""},
      {"positions_zero", [] { return with(opt_json(), "max_position_embeddings", 0); },
       "\"max_position_embeddings\" is 0"},
      {"positions_absurd", [] { return with(opt_json(), "max_position_embeddings", 1 << 30); },
       "to 16777216"},
      {"embed_absurd", [] { return with(opt_json(), "word_embed_proj_dim", -1); },
       "\"word_embed_proj_dim\" is -1"},
      {"activation", [] { return with(opt_json(), "activation_function", "mish"); },
       "\"mish\"; supported: relu, gelu"},
      {"activation_number", [] { return with(llama_json(), "hidden_act", 3); },
       "\"hidden_act\" is 3; must be a string"},
      {"bias_string", [] { return with(opt_json(), "enable_bias", "yes"); }, "must be true or false"},
      {"tied_number", [] { return with(llama_json(), "tie_word_embeddings", 1); }, "must be true or false"},
      {"eps_zero", [] { return with(llama_json(), "rms_norm_eps", 0); }, "\"rms_norm_eps\" is 0"},
      {"eps_text", [] { return with(llama_json(), "rms_norm_eps", "1e-5"); }, "must be a number"},
      {"theta_zero", [] { return with(llama_json(), "rope_theta", 0); }, "\"rope_theta\" is 0"},
      {"theta_negative", [] { return with(llama_json(), "rope_theta", -1e4); }, "\"rope_theta\""},
      {"rope_types_differ", [] { return with_rope("type", "linear"); }, "\"type\" is \"linear\""},
      {"rope_styles_differ",
       [] {
         return with(json::parse(with_rope("factor", 8.0)), "rope_parameters", {{"rope_type", "default"}});
       },
       "\"rope_scaling\" and \"rope_parameters\" contradict"},
      {"rope_factors_differ",
       [] {
         json both = json::parse(with_rope("factor", 8.0));
         both["rope_parameters"] = both["rope_scaling"];
         both["rope_parameters"]["factor"] = 4.0;
         return both.dump();
       },
       "\"rope_scaling\" and \"rope_parameters\" contradict"},
      {"thetas_differ",
       [] {
         return with(json::parse(with(llama_json(), "rope_theta", 5e5)), "rope_parameters",
                     {{"rope_theta", 1e4}});
       },
       "\"rope_theta\" is 10000 here and 500000 outside"},
      {"rope_list", [] { return with(llama_json(), "rope_scaling", json::array()); },
       "must be a JSON object"},
      {"rope_type", [] { return with_rope("rope_type", "yarn"); },
       "\"yarn\" is not supported; supported: default, llama3"},
      {"rope_factor", [] { return with_rope("factor", 0); }, "\"factor\" is 0"},
      {"rope_factor_text", [] { return with_rope("factor", "8"); }, "\"factor\" is \"8\""},
      {"rope_no_original", [] { return with_rope("original_max_position_embeddings", nullptr); },
       "is missing"},
      {"rope_factors_cross", [] { return with_rope("low_freq_factor", 4.0); }, "must be above"},
      {"partial_rotary", [] { return with(llama_json(), "partial_rotary_factor", 0.5); }, "not supported"},
      {"sliding_window", [] { return with(qwen2_json(), "use_sliding_window", true); },
       "only full attention"},
      {"sliding_layer",
       [] {
         return with(qwen2_json(), "layer_types", {"full_attention", "sliding_attention"});
       },
       "only \"full_attention\""},
      {"quantised",
       [] {
         return with(llama_json(), "quantization_config", {{"bits", 4}});
       },
       "quantised"},
      {"eos_outside", [] { return with(llama_json(), "eos_token_id", 640); }, "must be from 0 to 639"},
      {"eos_negative", [] { return with(llama_json(), "eos_token_id", {-1}); }, "\"eos_token_id\" is -1"},
      {"eos_object", [] { return with(llama_json(), "eos_token_id", json::object()); },
       "\"eos_token_id\" is an object"},
      {"eos_many", [] { return with(llama_json(), "eos_token_id", std::vector<int>(65, 1)); },
       "lists 65 ids"},
      {"bos_text", [] { return with(llama_json(), "bos_token_id", "<s>"); }, "\"bos_token_id\" is \"<s>\""},
  };
  return cases;
}

class RefusedConfig : public testing::TestWithParam<size_t> {};
TEST_P(RefusedConfig, InOneLineThatNamesTheField) {
  const BadConfig& bad = bad_configs()[GetParam()];
  try {
    parse_config(bad.text(), "dir/config.json");
    FAIL() << "accepted";
  } catch (const Error& e) {
    const std::string message = e.what();
    EXPECT_EQ(message.find("dir/config.json: "), 0u) << message;
    EXPECT_NE(message.find(bad.says), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_LT(message.size(), 400u);
  }
}
INSTANTIATE_TEST_SUITE_P(All, RefusedConfig, testing::Range<size_t>(0, bad_configs().size()),
                         [](const auto& info) { return bad_configs()[info.param].name; });

TEST(Config, BadFilesAreNamed) {
  const TemporaryDirectory dir;
  const auto message_of = [](const fs::path& path) -> std::string {
    try {
      load_config(path);
      return "accepted";
    } catch (const Error& e) {
      return e.what();
    }
  };
  EXPECT_NE(message_of(dir.path() / "absent").find("absent: no such file or directory"), std::string::npos);
  EXPECT_NE(message_of(dir.path()).find("config.json: no such file"), std::string::npos);
  fs::create_directory(dir.path() / "config.json");
  EXPECT_NE(message_of(dir.path()).find("config.json: not a regular file"), std::string::npos);
  fs::remove(dir.path() / "config.json");
  dir.write("config.json", std::string((4 << 20) + 1, ' '));
  EXPECT_NE(message_of(dir.path()).find("at most 4194304 are accepted"), std::string::npos);
  EXPECT_NE(message_of("/dev/zero").find("not a regular file"), std::string::npos);
}

}  // namespace
}  // namespace spinfer::test
