// Packed against masked-dense, tensor parallelism against one rank, bytes against the formula: on every
// golden model.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "models/checkpoint_tools.h"
#include "models/weight_table.h"
#include "tests/models/model_runner.h"
#include "tests/temporary_directory.h"
#include "tests/test_paths.h"

namespace spinfer::test {
namespace {

namespace fs = std::filesystem;

const std::vector<int32_t> kPrompt = {1, 17,  301, 44, 44, 9,  600, 77, 5,  123, 456,
                                      2, 639, 0,   31, 32, 33, 34,  35, 36, 400};

/// One golden model pruned to 50 %, as a packed and as a dense directory.
struct Pruned {
  TemporaryDirectory dir;
  fs::path packed = dir.path() / "packed", dense = dir.path() / "dense";
  explicit Pruned(const fs::path& source) {
    ThreadPool pool(2);
    PruneOptions options;
    prune_magnitude(source, packed, options, pool);
    options.dense_output = true;
    prune_magnitude(source, dense, options, pool);
  }
};

double worst_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = std::abs(double(a[i]) - double(b[i]));
    if (!(d <= worst)) worst = d;  // NaN stays
  }
  return worst;
}

class EveryArchitecture : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    source_ = test::assets_directory() / "hf_goldens" / GetParam();
    if (!fs::exists(source_)) GTEST_SKIP() << source_ << " is absent";
  }
  fs::path source_;
};

TEST_P(EveryArchitecture, PackedEqualsMaskedDense) {
  const Pruned pruned(source_);
  LoadOptions as_dense;
  as_dense.dense = true;
  auto packed = ModelRunner::load(pruned.packed);
  auto packed_on_load = ModelRunner::load(pruned.dense);
  auto decoded = ModelRunner::load(pruned.packed, as_dense);
  auto dense = ModelRunner::load(pruned.dense, as_dense);
  const int layers = dense.model().config.layers;
  EXPECT_EQ(packed.model().report.sparse_linears, 4 * layers);
  EXPECT_EQ(packed_on_load.model().report.sparse_linears, 4 * layers);
  EXPECT_EQ(decoded.model().report.dense_linears, 4 * layers);
  EXPECT_EQ(dense.model().report.dense_linears, 4 * layers);

  const auto expected = dense.append(kPrompt);
  EXPECT_EQ(decoded.append(kPrompt), expected);
  const auto logits = packed.append(kPrompt);
  EXPECT_EQ(packed_on_load.append(kPrompt), logits);
  // The two sum in different orders, in fp32, and round each activation to fp16 (2^-11): logits of about 5.
  EXPECT_LT(worst_difference(logits, expected), 0.02);
  float largest = 0;
  for (const float x : expected) largest = std::max(largest, std::abs(x));
  EXPECT_GT(largest, 0.5);
  // Pruning did something.
  auto original = ModelRunner::load(source_);
  EXPECT_GT(worst_difference(original.append(kPrompt), expected), 0.1);
}

TEST_P(EveryArchitecture, ReportsAreTheFormula) {
  const Pruned pruned(source_);
  for (const bool as_dense : {false, true}) {
    LoadOptions options;
    options.dense = as_dense;
    auto runner = ModelRunner::load(pruned.packed, options);
    const Model& model = runner.model();
    const WeightPlan plan = plan_weights(model.config, 0.5, {});
    EXPECT_EQ(model.report.parameters, plan.parameters);
    EXPECT_EQ(model.report.dense_bytes, plan.dense_bytes);
    EXPECT_EQ(model.report.dense_bytes, 2 * model.report.parameters);
    EXPECT_EQ(model.report.packed_bytes, as_dense ? plan.dense_bytes : plan.packed_bytes);
    EXPECT_EQ(model.report.device_bytes, model.report.packed_bytes);
    EXPECT_EQ(runner.device().bytes(MemoryUse::weights), model.report.device_bytes);
    EXPECT_EQ(2 * model.report.linear_nonzeros, model.report.linear_weights);
  }
}

TEST_P(EveryArchitecture, SummaryAgreesWithTheLoader) {
  const Pruned pruned(source_);
  ThreadPool pool(2);
  for (const fs::path& dir : {pruned.packed, pruned.dense}) {
    const CheckpointSummary summary = summarize_checkpoint(dir, 0.3, pool);
    int64_t nonzeros = 0, weights = 0, dense = summary.other_bytes;
    for (const LinearSummary& line : summary.linears) {
      EXPECT_EQ(line.nonzeros, line.m * line.k / 2) << line.name;
      EXPECT_EQ(line.packed_bytes, tca_bme_bytes(line.m, line.k, line.nonzeros)) << line.name;
      EXPECT_EQ(line.dense_bytes, 2 * line.m * line.k) << line.name;
      nonzeros += line.nonzeros;
      weights += line.m * line.k;
      dense += line.dense_bytes;
    }
    const auto runner = ModelRunner::load(dir);
    EXPECT_EQ(summary.parameters, runner.model().report.parameters);
    EXPECT_EQ(nonzeros, runner.model().report.linear_nonzeros);
    EXPECT_EQ(weights, runner.model().report.linear_weights);
    EXPECT_EQ(dense, runner.model().report.dense_bytes);
  }
}

TEST_P(EveryArchitecture, RanksTogetherEqualOne) {
  const Pruned pruned(source_);
  for (const fs::path& dir : {source_, pruned.packed, pruned.dense}) {
    auto one = ModelRunner::load(dir);
    const auto expected = one.append(kPrompt);
    for (const int world : {2, 4, 8}) {
      auto ranks = ModelRunner::load(dir, {}, world);
      // Partial sums are rounded to fp16 before the all-reduce: one more rounding a block and rank.
      EXPECT_LT(worst_difference(ranks.append(kPrompt), expected), 0.03) << dir << " on " << world;
      int64_t linear_weights = 0, vocab = 0;
      for (int r = 0; r < world; ++r) {
        const WeightPlan plan = plan_weights(ranks.model(r).config, 0.5, {r, world});
        EXPECT_EQ(plan.dense_bytes, ranks.model(r).report.dense_bytes) << r << " of " << world;
        linear_weights += ranks.model(r).report.linear_weights;
        vocab += ranks.model(r).vocab_shard;
      }
      EXPECT_EQ(vocab, one.model().config.vocab_size);
      if (one.model().config.kv_heads % world == 0) {
        EXPECT_EQ(linear_weights, one.model().report.linear_weights);
      }
    }
  }
}

TEST_P(EveryArchitecture, OneTokenAtATimeEqualsThePromptAtOnce) {
  auto runner = ModelRunner::load(source_);
  const auto expected = runner.append(kPrompt);
  runner.restart();
  std::vector<float> logits;
  for (const int32_t id : kPrompt) {
    const auto row = runner.append({id});
    logits.insert(logits.end(), row.begin(), row.end());
  }
  EXPECT_LT(worst_difference(logits, expected), 0.02);
}

TEST_P(EveryArchitecture, WorkspaceTakesTheBytesItSays) {
  const ModelConfig config = load_config(source_);
  for (const int world : {1, 4}) {
    const auto runner = ModelRunner::load(source_, {}, world);
    for (const int tokens : {1, 7, 64}) {
      Device device(cpu_backend(), {.threads = 1});
      const Model& model = runner.model(world - 1);
      const Workspace workspace(device, model, tokens, 3);
      EXPECT_EQ(device.bytes(MemoryUse::workspace), Workspace::bytes(config, model.shard, tokens, 3));
    }
  }
}

TEST_P(EveryArchitecture, ModelGivesItsMemoryBack) {
  Device device(cpu_backend(), {.threads = 1});
  ThreadPool pool(1);
  {
    const Model model = load_model(source_, load_config(source_), device, pool, {}, {});
    EXPECT_EQ(device.bytes(MemoryUse::weights), model.report.device_bytes);
  }
  EXPECT_EQ(device.bytes(MemoryUse::weights), 0);
  EXPECT_EQ(device.bytes(MemoryUse::workspace), 0);
}

TEST_P(EveryArchitecture, PackedHead) {
  // Every weight is pruned away or not, the head too: a random model whose tables are dense has a dense head.
  LoadOptions options;
  options.pack_head = true;
  options.min_sparsity = 0;
  auto packed = ModelRunner::load(source_, options);
  EXPECT_FALSE(packed.model().head.view.is_dense());
  auto plain = ModelRunner::load(source_);
  EXPECT_TRUE(plain.model().head.view.is_dense());
  EXPECT_LT(worst_difference(packed.append(kPrompt), plain.append(kPrompt)), 0.02);
  auto ranks = ModelRunner::load(source_, options, 2);
  EXPECT_LT(worst_difference(
                ranks.append(kPrompt),
                plain.workspace().logits.download(int64_t(kPrompt.size()) * plain.model().config.vocab_size)),
            0.03);
}

INSTANTIATE_TEST_SUITE_P(All, EveryArchitecture,
                         testing::Values("llama-mha-untied", "llama-gqa-rope-llama3", "opt-preln",
                                         "opt-350m-style", "qwen2-tied"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

ModelConfig small_config(const char* architecture) {
  const std::string type = architecture;
  return parse_config(
      type == "opt" ? R"({"model_type": "opt", "vocab_size": 333, "hidden_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 6, "ffn_dim": 200, "max_position_embeddings": 64, "word_embed_proj_dim": 40})"
                    : R"({"model_type": "llama", "vocab_size": 333, "hidden_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 20, "intermediate_size": 171,
    "max_position_embeddings": 64, "attention_bias": true, "mlp_bias": true})",
      "test");
}

class RandomModel : public testing::TestWithParam<const char*> {};

TEST_P(RandomModel, IsTheSameOnAnyNumberOfRanksAndThreads) {
  const ModelConfig config = small_config(GetParam());
  const auto make = [&](double sparsity, bool dense, int world) {
    LoadOptions options;
    options.dense = dense;
    return ModelRunner(world, 32, [&, sparsity, options](Device& device, ThreadPool&, Shard shard) {
      ThreadPool pool(shard.rank + 1);
      return random_model(config, sparsity, 42, device, pool, shard, options);
    });
  };
  const std::vector<int32_t> ids = {1, 2, 300, 4, 5, 6, 7, 99};
  for (const double sparsity : {0.0, 0.6, 1.0}) {
    auto one = make(sparsity, false, 1);
    const auto expected = one.append(ids);
    for (const float x : expected) ASSERT_TRUE(std::isfinite(x));
    auto dense = make(sparsity, true, 1);
    EXPECT_LT(worst_difference(dense.append(ids), expected), 0.02);
    for (const int world : {2, 6}) {
      auto ranks = make(sparsity, false, world);
      EXPECT_LT(worst_difference(ranks.append(ids), expected), 0.03) << world;
    }
    const double zeros =
        1 - double(one.model().report.linear_nonzeros) / double(one.model().report.linear_weights);
    EXPECT_NEAR(zeros, sparsity, 0.01);
    EXPECT_EQ(one.model().report.sparse_linears, sparsity >= 0.3 ? 8 : 0);
    const WeightPlan plan = plan_weights(config, sparsity, {});
    EXPECT_NEAR(double(plan.packed_bytes) / double(one.model().report.packed_bytes), 1, 0.01);
  }
}
INSTANTIATE_TEST_SUITE_P(All, RandomModel, testing::Values("opt", "llama"),
                         [](const auto& info) { return info.param; });

TEST(RandomModel, WeightsAreGaussianOfScaleOneOverRootK) {
  const ModelConfig config = small_config("llama");
  Device device(cpu_backend(), {.threads = 1});
  ThreadPool pool(2);
  const Model model = random_model(config, 0, 7, device, pool, {}, {});
  const Linear& w = model.layers[1].mlp_in.view;
  double sum = 0, squares = 0, within = 0;
  const double scale = 1 / std::sqrt(double(w.k)), count = double(w.m) * double(w.k);
  for (int64_t i = 0; i < w.m * w.k; ++i) {
    const double x = to_float(w.dense[i]) / scale;
    sum += x;
    squares += x * x;
    within += std::abs(x) < 1;
  }
  EXPECT_NEAR(sum / count, 0, 0.03);
  EXPECT_NEAR(squares / count, 1, 0.03);
  EXPECT_NEAR(within / count, 0.6827, 0.01);
  const Linear& other = model.layers[0].mlp_in.view;
  EXPECT_NE(std::vector(w.dense, w.dense + 100), std::vector(other.dense, other.dense + 100));
}

}  // namespace
}  // namespace spinfer::test
