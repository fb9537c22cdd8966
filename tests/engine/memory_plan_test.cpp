#include "engine/memory_plan.h"

#include <gtest/gtest.h>

#include <functional>

#include "engine/runner.h"
#include "kernels/check.h"

namespace spinfer {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

ModelConfig llama_7b() {
  ModelConfig c;
  c.vocab_size = 32000;
  c.hidden_size = c.embed_size = 4096;
  c.ffn_size = 11008;
  c.layers = 32;
  c.q_heads = c.kv_heads = 32;
  c.head_dim = 128;
  c.max_positions = 4096;
  c.rope_theta = 10000;
  return c;
}

RankBudget gpu(int64_t left, int64_t weights = 4 * kGiB) {
  return {.device = "GPU 0",
          .host = false,
          .total_bytes = 80 * kGiB,
          .weights_bytes = weights,
          .left_bytes = left};
}

std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& e) {
    return e.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

void expect_contains(const std::string& text, std::initializer_list<std::string> parts) {
  for (const auto& part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << "no '" << part << "' in: " << text;
}

TEST(MemoryPlan, KvBytesAreTheFormula) {
  EXPECT_EQ(Runner::kv_block_bytes(llama_7b(), 1, 16), int64_t{16} * 2 * 32 * 32 * 128 * 2);
  EXPECT_EQ(Runner::kv_block_bytes(llama_7b(), 4, 16), int64_t{16} * 2 * 32 * 8 * 128 * 2);
  ModelConfig gqa = llama_7b();
  gqa.kv_heads = 2;
  EXPECT_EQ(Runner::kv_block_bytes(gqa, 8, 16), int64_t{16} * 2 * 32 * 1 * 128 * 2);  // replicated
}

TEST(MemoryPlan, GpuCacheTakesWhatIsLeft) {
  const MemoryPlan plan = plan_memory(llama_7b(), {}, gpu(20 * kGiB));
  EXPECT_EQ(plan.max_model_len, 4096);
  EXPECT_LE(plan.workspace_bytes + plan.kv_bytes(), 20 * kGiB);
  EXPECT_GT(plan.workspace_bytes + plan.kv_bytes() + plan.kv_block_bytes, 20 * kGiB);
  EXPECT_EQ(plan.kv_bytes_per_token(), 512 * 1024);
  EXPECT_EQ(plan.total_bytes(), plan.weights_bytes + plan.workspace_bytes + plan.kv_bytes());
}

TEST(MemoryPlan, UtilizationLimitsTheBudget) {
  EngineOptions options;
  options.gpu_memory_utilization = 0.5;
  const RankBudget budget = budget_of_gpu(options, 80 * kGiB, 10 * kGiB, 3 * kGiB);
  EXPECT_EQ(budget.left_bytes, 27 * kGiB);
}

TEST(MemoryPlan, WithoutALengthTheModelsIsLoweredToWhatFits) {
  EngineOptions options;
  options.max_num_batched_tokens = 512;
  const MemoryPlan probe = plan_memory(llama_7b(), options, gpu(20 * kGiB));
  const MemoryPlan plan =
      plan_memory(llama_7b(), options, gpu(probe.workspace_bytes + 100 * probe.kv_block_bytes));
  EXPECT_EQ(plan.kv_blocks, 100);
  EXPECT_EQ(plan.max_model_len, 1600);
}

TEST(MemoryPlan, MessagesNameTheTermAndTheSmallestChange) {
  EngineOptions options;
  const ModelConfig config = llama_7b();
  const MemoryPlan probe = plan_memory(config, options, gpu(20 * kGiB));

  options.max_model_len = 4096;
  const int64_t left = probe.workspace_bytes + 100 * probe.kv_block_bytes;
  const auto too_long = message_of([&] { plan_memory(config, options, gpu(left)); });
  expect_contains(too_long, {"1 request of 4096 tokens needs 2.15 GB", "lower --max-model-len to 1600"});
  options.max_model_len = 1600;
  EXPECT_NO_THROW(plan_memory(config, options, gpu(left)));
  options.max_model_len = 0;

  options.num_kv_blocks = 101;
  expect_contains(message_of([&] { plan_memory(config, options, gpu(left)); }),
                  {"101 blocks", "lower --num-kv-blocks to 100"});
  options.num_kv_blocks = 100;
  EXPECT_NO_THROW(plan_memory(config, options, gpu(left)));
  options.num_kv_blocks = 0;

  options.kv_cache_bytes = 101 * probe.kv_block_bytes;
  expect_contains(message_of([&] { plan_memory(config, options, gpu(left)); }),
                  {"lower --kv-cache-memory to " + std::to_string(100 * probe.kv_block_bytes)});
  options.kv_cache_bytes = 1000;
  expect_contains(message_of([&] { plan_memory(config, options, gpu(left)); }),
                  {"--kv-cache-memory 1000", "one block"});
  options.kv_cache_bytes = 0;

  const int64_t tight = probe.workspace_bytes / 2;
  const std::string workspace = message_of([&] { plan_memory(config, options, gpu(tight)); });
  expect_contains(workspace, {"workspace for steps of 8192 tokens", "lower --max-num-batched-tokens to "});
  options.max_num_batched_tokens = std::stoi(workspace.substr(workspace.rfind(' ')));
  EXPECT_NO_THROW(plan_memory(config, options, gpu(tight)));
  options.max_num_batched_tokens += 64;
  EXPECT_THROW(plan_memory(config, options, gpu(tight)), Error);
  options.max_num_batched_tokens = 8192;

  expect_contains(message_of([&] { plan_memory(config, options, gpu(-kGiB)); }),
                  {"4.29 GB of weights leave 0 B", "--gpu-memory-utilization"});
}

TEST(MemoryPlan, HostCacheIsBoundedByDemandAndByItsShareOfTheRam) {
  EngineOptions options;
  options.max_num_batched_tokens = 512;
  RankBudget host{.device = "CPU",
                  .host = true,
                  .total_bytes = 1024 * kGiB,
                  .weights_bytes = 0,
                  .left_bytes = 512 * kGiB};
  EXPECT_EQ(plan_memory(llama_7b(), options, host).kv_tokens(), int64_t{kHostKvSequences} * 4096);
  options.max_num_seqs = 2;
  EXPECT_EQ(plan_memory(llama_7b(), options, host).kv_tokens(), 2 * 4096);
  options.max_num_seqs = 256;
  host.total_bytes = 32 * kGiB;
  host.left_bytes = 30 * kGiB;
  EXPECT_EQ(plan_memory(llama_7b(), options, host).kv_bytes(), 32 * kGiB / kHostKvShare);
}

TEST(MemoryPlan, LimitsFollowTheShortestBound) {
  EngineOptions options;
  const StepLimits limits = plan_memory(llama_7b(), options, gpu(40 * kGiB)).limits;
  EXPECT_EQ(limits.max_tokens, 8192);
  EXPECT_EQ(limits.max_seqs, 256);
  EXPECT_EQ(limits.max_logits, int(EngineOptions{}.score_logits_bytes / (4 * 32000)));
  EXPECT_EQ(limits.max_blocks, 256);
  options.max_num_seqs = 1;
  options.max_model_len = 100;
  const StepLimits small = plan_memory(llama_7b(), options, gpu(40 * kGiB)).limits;
  EXPECT_EQ(small.max_tokens, 100);
  EXPECT_EQ(small.max_blocks, 7);
}

}  // namespace
}  // namespace spinfer
