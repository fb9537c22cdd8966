#include "models/weight_table.h"

#include <gtest/gtest.h>

#include "kernels/check.h"
#include "models/checkpoint_tools.h"
#include "tests/test_paths.h"

namespace spinfer::test {
namespace {

ModelConfig bundled(const char* file) {
  return load_config(test::source_directory() / "configs" / "models" / file);
}

std::vector<int64_t> sizes(Share share, int64_t size, const ModelConfig& c, int world) {
  std::vector<int64_t> result;
  int64_t expected_begin = 0;
  for (int rank = 0; rank < world; ++rank) {
    const Range range = share_of(share, size, c, {rank, world});
    if (share != Share::kv_heads) {
      EXPECT_EQ(range.begin, expected_begin);
    }
    expected_begin = range.end;
    result.push_back(range.size());
  }
  EXPECT_EQ(expected_begin, size);
  return result;
}

TEST(Shares, LlamaFfnInTilesOverEightRanks) {
  const ModelConfig c = bundled("llama-2-7b.json");  // 11008 = 172 tiles = 8·21 + 4
  EXPECT_EQ(sizes(Share::ffn, c.ffn_size, c, 8),
            (std::vector<int64_t>{1408, 1408, 1408, 1408, 1344, 1344, 1344, 1344}));
}

TEST(Shares, OptVocabularyInTiles) {
  const ModelConfig c = bundled("opt-13b.json");  // 50272 = 785.5 tiles
  EXPECT_EQ(sizes(Share::vocab, c.vocab_size, c, 4), (std::vector<int64_t>{12608, 12608, 12544, 12512}));
}

TEST(Shares, SmallSizesInFinerUnits) {
  const ModelConfig c = bundled("opt-125m.json");
  EXPECT_EQ(sizes(Share::ffn, 172, c, 2), (std::vector<int64_t>{128, 44}));
  EXPECT_EQ(sizes(Share::ffn, 172, c, 4), (std::vector<int64_t>{64, 64, 32, 12}));
  EXPECT_EQ(sizes(Share::ffn, 5, c, 4), (std::vector<int64_t>{2, 1, 1, 1}));
}

TEST(Shares, FewerKeyValueHeadsThanRanksAreReplicated) {
  const ModelConfig c = bundled("qwen2-7b.json");  // 28 heads, 4 of keys and values
  for (int rank = 0; rank < 28; ++rank) {
    const Range kv = share_of(Share::kv_heads, c.kv_size(), c, {rank, 28});
    const Range q = share_of(Share::q_heads, c.q_size(), c, {rank, 28});
    EXPECT_EQ(kv.size(), c.head_dim);
    EXPECT_EQ(kv.begin / c.head_dim, q.begin / c.head_dim / 7) << rank;  // 7 query heads share one
  }
}

TEST(TensorParallel, LegalDegrees) {
  const auto refusal = [](const char* file, int world) -> std::string {
    try {
      check_tensor_parallel(bundled(file), world);
      return "legal";
    } catch (const UsageError& e) {
      return e.what();
    }
  };
  for (const int world : {1, 2, 4, 8, 16, 32}) EXPECT_EQ(refusal("llama-2-7b.json", world), "legal") << world;
  for (const int world : {1, 2, 3, 4, 6, 12}) EXPECT_EQ(refusal("opt-125m.json", world), "legal") << world;
  EXPECT_EQ(refusal("llama-2-70b.json", 64), "legal");
  EXPECT_EQ(
      refusal("opt-125m.json", 8),
      "--tp 8: 12 attention heads and 12 key-value heads cannot be shared so; legal: 1, 2, 3, 4, 6, 12");
  EXPECT_EQ(refusal("qwen2-7b.json", 3),
            "--tp 3: 28 attention heads and 4 key-value heads cannot be shared so; legal: 1, 2, 4, 28");
  for (const int world : {0, -1, 65, 1 << 30}) EXPECT_NE(refusal("llama-2-7b.json", world), "legal") << world;
}

TEST(TensorParallel, RanksShareEveryByteOnce) {
  for (const char* file : {"opt-13b.json", "llama-2-70b.json", "llama-3-8b.json", "opt-66b.json"}) {
    const ModelConfig c = bundled(file);
    const WeightPlan one = plan_weights(c, 0.6, {});
    for (const int world : {2, 4, 8}) {
      // Everything but tables and norms is split; what is not is there once a rank.
      int64_t replicated = 0;
      const WeightTable table = weight_table(c);
      for (const TensorSpec& t : table.other_tensors()) {
        if (t.name != "lm_head.weight") replicated += 2 * t.rows * std::max<int64_t>(1, t.cols);
      }
      int64_t sum = 0, packed = 0;
      for (int rank = 0; rank < world; ++rank) {
        const WeightPlan plan = plan_weights(c, 0.6, {rank, world});
        sum += plan.dense_bytes;
        packed += plan.packed_bytes;
        EXPECT_EQ(plan.parameters, one.parameters);
      }
      EXPECT_EQ(sum, one.dense_bytes + (world - 1) * replicated) << file << " on " << world;
      EXPECT_NEAR(double(packed), double(one.packed_bytes + (world - 1) * replicated), double(packed) * 1e-3);
    }
  }
}

TEST(Plan, PaperCompressionAt60Percent) {
  const ModelConfig c = bundled("opt-13b.json");
  const WeightPlan plan = plan_weights(c, 0.6, {});
  EXPECT_EQ(plan.dense_bytes, 2 * plan.parameters);
  // 2 / (2·0.4 + 1/8 + 4/4096) = 2.16 on the linears, which are 97.9 % of OPT-13B.
  EXPECT_NEAR(double(plan.dense_bytes) / double(plan.packed_bytes), 2.11, 0.02);
  EXPECT_EQ(plan_weights(c, 0.2, {}).packed_bytes, plan.dense_bytes);  // below min_sparsity
}

}  // namespace
}  // namespace spinfer::test
