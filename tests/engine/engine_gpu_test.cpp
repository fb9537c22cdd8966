// The whole engine on a GPU against the CPU: log-probabilities of given texts, greedy and sampled tokens.
// Skipped where there is no GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>

#include "tests/engine/engine_gpu_fixture.h"

namespace spinfer {
namespace {

class EngineGpu : public DemoModelOnGpus {
 protected:
  EngineGpu() : DemoModelOnGpus(1) {}

  std::unique_ptr<Engine> engine(const char* device, bool dense, bool deterministic = false,
                                 std::optional<bool> graphs = {}) const {
    EngineOptions options = model_options(device, deterministic);
    options.graphs = graphs;
    options.dense = dense;
    return Engine::create(options);
  }
};

struct Answers {
  std::vector<Answer> scored, greedy;
};

Answers answers_of(Engine& engine) {
  std::vector<RequestId> scored, greedy;
  for (const auto& prompt : prompts()) {
    scored.push_back(engine.add_request(prompt, {.max_tokens = 0, .prompt_logprobs = true}));
    greedy.push_back(
        engine.add_request(prompt, {.max_tokens = 40, .temperature = 0, .ignore_eos = true, .logprobs = 2}));
  }
  const auto all = run_to_end(engine);
  Answers answers;
  for (size_t i = 0; i < scored.size(); ++i) {
    answers.scored.push_back(all.at(scored[i]));
    answers.greedy.push_back(all.at(greedy[i]));
  }
  return answers;
}

TEST_P(EngineGpu, AnswersLikeTheCpu) {
  const Answers want = answers_of(*engine("cpu", false));
  for (const bool dense : {false, true}) {
    SCOPED_TRACE(dense ? "dense" : "sparse");
    const Answers got = answers_of(*engine("cuda", dense));
    double worst = 0;
    size_t compared = 0;
    for (size_t i = 0; i < want.scored.size(); ++i) {
      const auto &a = got.scored[i].prompt_logprobs, &b = want.scored[i].prompt_logprobs;
      ASSERT_EQ(got.scored[i].error, "");
      ASSERT_EQ(a.size(), b.size());
      for (size_t t = 0; t < a.size(); ++t) worst = std::max(worst, std::abs(double(a[t]) - double(b[t])));
      for (size_t t = 0; t < want.greedy[i].ids.size(); ++t) {
        const TokenLogprob& token = want.greedy[i].logprobs.at(t);
        if (token.top.at(0).logprob - token.top.at(1).logprob < kNearTie) break;
        ASSERT_LT(t, got.greedy[i].ids.size());
        ASSERT_EQ(got.greedy[i].ids[t], want.greedy[i].ids[t]) << "prompt " << i << " token " << t;
        worst =
            std::max(worst, std::abs(double(got.greedy[i].logprobs.at(t).logprob) - double(token.logprob)));
        ++compared;
      }
    }
    EXPECT_LT(worst, 0.02);
    EXPECT_GT(compared, 50u);
    std::cout << GetParam() << (dense ? " dense" : " sparse") << ": worst difference " << worst << " nat, "
              << compared << " greedy tokens compared\n";
  }
}

TEST_P(EngineGpu, SampledTokensAreRepeatable) {
  const auto run = [&](Engine& engine) {
    std::vector<RequestId> ids;
    for (uint64_t seed = 0; seed < 6; ++seed)
      ids.push_back(engine.add_request(prompts()[2], {.max_tokens = 20,
                                                      .temperature = 0.8f,
                                                      .top_k = 40,
                                                      .top_p = 0.9f,
                                                      .seed = seed,
                                                      .ignore_eos = true}));
    const auto all = run_to_end(engine);
    std::vector<std::vector<int32_t>> tokens;
    for (const RequestId id : ids) tokens.push_back(all.at(id).ids);
    return tokens;
  };
  const auto gpu = engine("cuda", false);
  const auto tokens = run(*gpu);
  EXPECT_EQ(tokens, run(*gpu));
  EXPECT_NE(tokens[0], tokens[1]);
}

/// Tokens and log-probabilities of one request, alone or among others; bit for bit the same.
TEST_P(EngineGpu, DeterministicAnswersDoNotDependOnTheBatch) {
  for (const bool dense : {false, true}) {
    SCOPED_TRACE(dense ? "dense" : "sparse");
    const auto answer_among = [&](int others) {
      const auto gpu = engine("cuda", dense, true);
      const SamplingParams params{.max_tokens = 30, .temperature = 0, .ignore_eos = true, .logprobs = 0};
      for (int i = 0; i < others; ++i) gpu->add_request(prompts()[size_t(i) % 5], params);
      const RequestId id = gpu->add_request(prompts()[3], params);
      return run_to_end(*gpu).at(id);
    };
    const Answer alone = answer_among(0);
    for (const int others : {1, 5, 7}) {
      const Answer among = answer_among(others);
      EXPECT_EQ(among.ids, alone.ids) << others;
      for (size_t t = 0; t < alone.logprobs.size(); ++t)
        EXPECT_EQ(among.logprobs.at(t).logprob, alone.logprobs[t].logprob)
            << others << " others, token " << t;
    }
  }
}

/// Eagerly queued ops and recorded ones compute the same, whether recorded before or on the way.
TEST_P(EngineGpu, GraphsAndWarmingUpChangeNothing) {
  const auto run = [&](bool graphs, bool warm) {
    const auto gpu = engine("cuda", false, true, graphs);  // so that padding changes nothing
    if (warm) {
      gpu->warm_up();
      gpu->check_integrity();
      EXPECT_EQ(gpu->stats().kv_blocks_used + gpu->stats().kv_blocks_cached, 0);
    }
    std::vector<RequestId> ids;
    for (int i = 0; i < 6; ++i)
      ids.push_back(
          gpu->add_request(prompts()[size_t(i) % 5],
                           {.max_tokens = 20 + 7 * i, .temperature = 0, .ignore_eos = true, .logprobs = 0}));
    const auto all = run_to_end(*gpu);
    std::vector<std::vector<int32_t>> tokens;
    for (const RequestId id : ids) tokens.push_back(all.at(id).ids);
    return tokens;
  };
  const auto eager = run(false, false);
  EXPECT_EQ(run(true, false), eager);
  EXPECT_EQ(run(true, true), eager);
  EXPECT_EQ(run(false, true), eager);
}

TEST_P(EngineGpu, BiasesChooseTokens) {
  const auto gpu = engine("cuda", false);
  SamplingParams params{.max_tokens = 5, .temperature = 0, .ignore_eos = true};
  const RequestId plain = gpu->add_request(prompts()[2], params);
  params.logit_bias = {{77, 100}};
  const RequestId forced = gpu->add_request(prompts()[2], params);
  const auto first = run_to_end(*gpu);
  EXPECT_EQ(first.at(forced).ids, std::vector<int32_t>(5, 77));
  params.logit_bias = {{first.at(plain).ids.at(0), -100}};
  const RequestId banned = gpu->add_request(prompts()[2], params);
  EXPECT_NE(run_to_end(*gpu).at(banned).ids.at(0), first.at(plain).ids.at(0));
}

INSTANTIATE_TEST_SUITE_P(Models, EngineGpu, testing::Values("demo-llama", "demo-opt"), [](const auto& info) {
  std::string name = info.param;
  std::ranges::replace(name, '-', '_');
  return name;
});

}  // namespace
}  // namespace spinfer
