// The engine on a tiny random model: requests, limits, sampling, log-probabilities, cancelling.
#include "engine/engine.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <set>

#include "kernels/check.h"
#include "tests/engine/engine_fixture.h"

namespace spinfer {
namespace {

std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& e) {
    return e.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

void expect_contains(const std::string& text, std::initializer_list<const char*> parts) {
  for (const char* part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << "no '" << part << "' in: " << text;
}

class EngineTest : public testing::Test {
 protected:
  TinyModel model_;
  std::mt19937 random_{11};
};

TEST_F(EngineTest, GeneratesToTheLengthAskedFor) {
  const auto engine = Engine::create(model_.options());
  EXPECT_STREQ(engine->backend().name, "cpu");
  EXPECT_EQ(engine->max_model_len(), kTinyPositions);
  EXPECT_EQ(engine->tokenizer(), nullptr);
  EXPECT_FALSE(engine->has_work());
  EXPECT_TRUE(engine->step().empty());
  const Answer answer = run_one(*engine, {1, 2, 3}, {.max_tokens = 9, .temperature = 0, .ignore_eos = true});
  EXPECT_EQ(answer.ids.size(), 9u);
  EXPECT_EQ(answer.finish, FinishReason::length);
  EXPECT_TRUE(answer.text.empty());
  EXPECT_EQ(engine->stats().generated_tokens, 9);
  EXPECT_EQ(engine->stats().prompt_tokens, 3);
  EXPECT_EQ(engine->stats().kv_blocks_used, 0);
}

TEST_F(EngineTest, FillsTheModelToItsLastPosition) {
  const auto engine = Engine::create(model_.options());
  const Answer answer =
      run_one(*engine, random_prompt(random_, 200), {.max_tokens = kTinyPositions - 200, .ignore_eos = true});
  EXPECT_EQ(answer.ids.size(), size_t(kTinyPositions - 200));
}

TEST_F(EngineTest, EndOfTextEndsTheAnswerAndIsNotPartOfIt) {
  const auto engine = Engine::create(model_.options());
  const SamplingParams params{.max_tokens = 200, .temperature = 2, .top_k = 0, .top_p = 1};
  int stopped = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SamplingParams seeded = params;
    seeded.seed = seed;
    const Answer answer = run_one(*engine, {1, 5}, seeded);
    stopped += answer.finish == FinishReason::stop;
    EXPECT_EQ(std::count(answer.ids.begin(), answer.ids.end(), 2), 0);
    seeded.ignore_eos = true;
    const Answer whole = run_one(*engine, {1, 5}, seeded);
    EXPECT_EQ(whole.ids.size(), 200u);
    EXPECT_TRUE(std::equal(answer.ids.begin(), answer.ids.end(), whole.ids.begin()));
    if (answer.finish == FinishReason::stop) {
      EXPECT_EQ(whole.ids[answer.ids.size()], 2);
    }
  }
  EXPECT_GT(stopped, 5);
}

TEST_F(EngineTest, SeedsDecideTheDraws) {
  const auto engine = Engine::create(model_.options());
  SamplingParams params{
      .max_tokens = 20, .temperature = 1.5f, .top_k = 0, .top_p = 1, .seed = 1, .ignore_eos = true};
  const auto first = run_one(*engine, {1, 2}, params).ids;
  EXPECT_EQ(run_one(*engine, {1, 2}, params).ids, first);
  params.seed = 2;
  EXPECT_NE(run_one(*engine, {1, 2}, params).ids, first);

  params.seed.reset();  // from the engine's seed and the request's number: the same in a new engine
  std::vector<std::vector<int32_t>> runs[2];
  for (auto& run : runs) {
    const auto fresh = Engine::create(model_.options());
    for (int i = 0; i < 3; ++i) run.push_back(run_one(*fresh, {1, 2}, params).ids);
  }
  EXPECT_EQ(runs[0], runs[1]);
  EXPECT_NE(runs[0][0], runs[0][1]);
}

TEST_F(EngineTest, RepeatPenaltyLooksAtPromptAndOutput) {
  const auto engine = Engine::create(model_.options());
  // A huge penalty bans every token seen, as long as an unseen one is left with a chance.
  const auto prompt = random_prompt(random_, 10);
  const auto ids = run_one(*engine, prompt,
                           {.max_tokens = 40, .temperature = 0, .repeat_penalty = 1e6f, .ignore_eos = true})
                       .ids;
  std::set<int32_t> seen(prompt.begin(), prompt.end());
  int repeated = 0;
  for (const int32_t id : ids) repeated += !seen.insert(id).second;
  EXPECT_EQ(repeated, 0);
}

TEST_F(EngineTest, LogprobsAreThoseOfTheChosenTokens) {
  const auto engine = Engine::create(model_.options());
  const Answer answer =
      run_one(*engine, {1, 2, 3}, {.max_tokens = 6, .temperature = 0, .ignore_eos = true, .logprobs = 3});
  ASSERT_EQ(answer.logprobs.size(), 6u);
  for (size_t i = 0; i < 6; ++i) {
    const TokenLogprob& token = answer.logprobs[i];
    EXPECT_EQ(token.id, answer.ids[i]);
    ASSERT_EQ(token.top.size(), 3u);
    EXPECT_EQ(token.top[0].id, token.id);  // greedy
    EXPECT_FLOAT_EQ(token.top[0].logprob, token.logprob);
    EXPECT_GE(token.top[0].logprob, token.top[1].logprob);
    EXPECT_LT(token.logprob, 0);
  }
  // A whole vocabulary of alternatives sums to one; more than there are is not an error.
  const Answer all =
      run_one(*engine, {1}, {.max_tokens = 1, .temperature = 0, .ignore_eos = true, .logprobs = 128});
  double sum = 0;
  for (const auto& top : all.logprobs.at(0).top) sum += std::exp(double(top.logprob));
  EXPECT_EQ(all.logprobs[0].top.size(), size_t(kTinyVocab));
  EXPECT_NEAR(sum, 1, 1e-4);
}

TEST_F(EngineTest, PromptLogprobsAgreeWithGenerating) {
  auto options = model_.options();
  options.max_num_batched_tokens = 7;  // several chunks
  const auto engine = Engine::create(options);
  const auto prompt = random_prompt(random_, 5);
  const Answer generated =
      run_one(*engine, prompt, {.max_tokens = 20, .temperature = 1, .ignore_eos = true, .logprobs = 4});
  std::vector<int32_t> all = prompt;
  all.insert(all.end(), generated.ids.begin(), generated.ids.end());
  const SamplingParams score{.max_tokens = 0, .logprobs = 4, .prompt_logprobs = true};
  const Answer scored = run_one(*engine, all, score);
  EXPECT_EQ(scored.finish, FinishReason::length);
  EXPECT_TRUE(scored.ids.empty());
  ASSERT_EQ(scored.prompt_logprobs.size(), all.size() - 1);
  for (size_t i = 0; i < generated.logprobs.size(); ++i) {
    EXPECT_EQ(scored.prompt_logprobs[prompt.size() - 1 + i], generated.logprobs[i].logprob) << i;
  }
  std::vector<int32_t> shorter(all.begin(), all.end() - 1);
  const Answer before_last = run_one(*engine, shorter, score);
  ASSERT_EQ(before_last.last_top.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(before_last.last_top[i].id, generated.logprobs.back().top[i].id);
    EXPECT_EQ(before_last.last_top[i].logprob, generated.logprobs.back().top[i].logprob);
  }
  const Answer one = run_one(*engine, {3}, score);
  EXPECT_TRUE(one.prompt_logprobs.empty());
  EXPECT_EQ(one.last_top.size(), 4u);
  EXPECT_EQ(one.finish, FinishReason::length);
  // Both at once: the scores come with the first token.
  const Answer both =
      run_one(*engine, all, {.max_tokens = 3, .temperature = 0, .ignore_eos = true, .prompt_logprobs = true});
  EXPECT_EQ(both.prompt_logprobs, scored.prompt_logprobs);
  EXPECT_EQ(both.ids.size(), 3u);
}

TEST_F(EngineTest, RefusesWhatCanNeverRunWithTheNumbers) {
  auto options = model_.options();
  const auto engine = Engine::create(options);
  const auto add = [&](std::vector<int32_t> prompt, SamplingParams params) {
    return message_of([&] { engine->add_request(std::move(prompt), params); });
  };
  expect_contains(add({}, {}), {"prompt has no tokens"});
  expect_contains(add({1, kTinyVocab}, {}), {"token id 120", "0 to 119"});
  expect_contains(add({-1}, {}), {"token id -1"});
  expect_contains(add({1}, {.max_tokens = 256}),
                  {"prompt of 1", "256 new", "257", "limit is 256", "positions"});
  expect_contains(add({1}, {.temperature = -1}), {"temperature"});
  expect_contains(add({1}, {.stop = {"x"}}), {"tokenizer"});
  EXPECT_FALSE(engine->has_work());

  options.num_kv_blocks = 4;
  const auto small = Engine::create(options);
  EXPECT_EQ(small->max_model_len(), 64);
  expect_contains(message_of([&] { small->add_request(random_prompt(random_, 60), {.max_tokens = 5}); }),
                  {"65", "limit is 64", "4 blocks of 16", "256 positions"});
  EXPECT_EQ(run_one(*small, random_prompt(random_, 60), {.max_tokens = 4, .ignore_eos = true}).ids.size(),
            4u);
}

TEST_F(EngineTest, OptionsOutOfRangeAreUsageErrors) {
  const auto refused = [&](const std::function<void(EngineOptions&)>& spoil) {
    EngineOptions options = model_.options();
    spoil(options);
    try {
      Engine::create(options);
    } catch (const UsageError& e) {
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  expect_contains(refused([](auto& o) { o.max_num_seqs = 0; }), {"--max-num-seqs 0"});
  expect_contains(refused([](auto& o) { o.max_num_batched_tokens = -5; }), {"--max-num-batched-tokens -5"});
  expect_contains(refused([](auto& o) { o.max_model_len = 300; }), {"--max-model-len 300", "1 to 256"});
  expect_contains(refused([](auto& o) { o.tensor_parallel = 0; }), {"--tp 0"});
  expect_contains(refused([](auto& o) { o.tensor_parallel = 3; }), {"3"});
  expect_contains(refused([](auto& o) { o.gpu_memory_utilization = 1.5; }), {"--gpu-memory-utilization 1.5"});
  expect_contains(refused([](auto& o) { o.device = "tpu"; }), {"--device tpu"});
}

TEST_F(EngineTest, MaxModelLenThatTheCacheCannotHoldNamesTheOneThatFits) {
  auto options = model_.options();
  options.num_kv_blocks = 5;
  options.max_model_len = 100;
  expect_contains(message_of([&] { Engine::create(options); }),
                  {"100 tokens", "--num-kv-blocks", "lower --max-model-len to 80"});
}

TEST_F(EngineTest, CancelEndsWaitingAndRunningRequestsAtTheNextStep) {
  auto options = model_.options();
  options.max_num_seqs = 2;
  const auto engine = Engine::create(options);
  std::vector<RequestId> ids;
  for (int i = 0; i < 4; ++i) {
    ids.push_back(engine->add_request(random_prompt(random_, 20), {.max_tokens = 30, .ignore_eos = true}));
  }
  engine->step();
  EXPECT_EQ(engine->stats().running, 2);
  EXPECT_EQ(engine->stats().waiting, 2);
  EXPECT_GT(engine->times(ids[0]).first_scheduled, 0);
  EXPECT_EQ(engine->times(ids[3]).first_scheduled, 0);
  engine->cancel(ids[0]);
  engine->cancel(ids[3]);
  engine->cancel(999);
  int cancelled = 0;
  for (const auto& update : engine->step()) {
    if (update.finish != FinishReason::cancelled) continue;
    ++cancelled;
    EXPECT_TRUE(update.id == ids[0] || update.id == ids[3]);
    EXPECT_GT(engine->times(update.id).finished, 0);
  }
  EXPECT_EQ(cancelled, 2);
  EXPECT_EQ(engine->stats().waiting, 0);
  const auto rest = run_to_end(*engine);
  EXPECT_EQ(rest.size(), 2u);
  for (const auto& [id, answer] : rest) EXPECT_EQ(answer.finish, FinishReason::length);
  EXPECT_EQ(engine->stats().kv_blocks_used, 0);
  EXPECT_THROW(engine->times(ids[0]), Error);
}

/// However the last request before it ended.
TEST_F(EngineTest, TimeWithoutRequestsIsNoGap) {
  const auto engine = Engine::create(model_.options());
  for (const bool cancel : {false, true}) {
    SCOPED_TRACE(cancel);
    const RequestId id =
        engine->add_request(random_prompt(random_, 5), {.max_tokens = 3, .ignore_eos = true});
    engine->step();
    EXPECT_EQ(engine->last_step().host_gap_seconds, 0);
    engine->step();
    EXPECT_GT(engine->last_step().host_gap_seconds, 0);
    if (cancel) engine->cancel(id);
    engine->step();
    EXPECT_FALSE(engine->has_work());
    engine->add_request(random_prompt(random_, 5), {.max_tokens = 1});
    engine->step();
    EXPECT_EQ(engine->last_step().host_gap_seconds, 0);
  }
}

TEST_F(EngineTest, MemoryReportCountsWhatIsThere) {
  auto options = model_.options();
  options.num_kv_blocks = 10;
  const auto engine = Engine::create(options);
  const MemoryReport memory = engine->memory();
  EXPECT_EQ(memory.kv_bytes,
            10 * 2 * 2 * 2 * 16 * 16 * 2);  // blocks, k and v, layers, heads, tokens, head_dim, fp16
  EXPECT_GT(memory.workspace_bytes, 0);
  EXPECT_GT(memory.weights_bytes, 0);
  EXPECT_GE(memory.peak_bytes, memory.kv_bytes + memory.workspace_bytes);
  EXPECT_NEAR(memory.sparsity, 0.5, 0.03);
  EXPECT_GT(memory.sparse_linears, 0);

  options.dense = true;
  const MemoryReport dense = Engine::create(options)->memory();
  EXPECT_EQ(dense.sparse_linears, 0);
  EXPECT_EQ(dense.weights_dense_bytes, memory.weights_dense_bytes);
}

TEST_F(EngineTest, DenseBaselineGivesTheSameTokens) {
  auto options = model_.options();
  const auto sparse = Engine::create(options);
  options.dense = true;
  const auto dense = Engine::create(options);
  const auto prompt = random_prompt(random_, 12);
  const SamplingParams score{.max_tokens = 0, .prompt_logprobs = true};
  const auto a = run_one(*sparse, prompt, score).prompt_logprobs,
             b = run_one(*dense, prompt, score).prompt_logprobs;
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 0.02) << i;
}

}  // namespace
}  // namespace spinfer
