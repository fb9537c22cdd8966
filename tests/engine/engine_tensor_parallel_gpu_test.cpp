// The engine on two GPUs against itself on one: log-probabilities, greedy tokens, the same bits from run to
// run, graphs and warming up, a rank that fails. Skipped where there are fewer than two GPUs.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>

#include "tests/engine/engine_gpu_fixture.h"

namespace spinfer {
namespace {

class EngineTwoGpus : public DemoModelOnGpus {
 protected:
  EngineTwoGpus() : DemoModelOnGpus(2) {}

  EngineOptions options(int ranks, bool deterministic = false) const {
    EngineOptions options = model_options("cuda", deterministic);
    options.tensor_parallel = ranks;
    return options;
  }
};

/// Scored prompts, then greedy answers.
std::vector<Answer> answers_of(Engine& engine) {
  std::vector<RequestId> ids;
  for (const auto& prompt : prompts())
    ids.push_back(engine.add_request(prompt, {.max_tokens = 0, .prompt_logprobs = true}));
  for (const auto& prompt : prompts()) {
    ids.push_back(
        engine.add_request(prompt, {.max_tokens = 60, .temperature = 0, .ignore_eos = true, .logprobs = 2}));
  }
  const auto all = run_to_end(engine);
  std::vector<Answer> answers;
  for (const RequestId id : ids) answers.push_back(all.at(id));
  return answers;
}

TEST_P(EngineTwoGpus, AnswerLikeOne) {
  for (const bool dense : {false, true}) {
    SCOPED_TRACE(dense ? "dense" : "sparse");
    std::vector<std::vector<Answer>> runs;
    for (const int ranks : {1, 2}) {
      EngineOptions with = options(ranks);
      with.dense = dense;
      runs.push_back(answers_of(*Engine::create(with)));
    }
    double sum = 0, worst = 0;
    size_t compared = 0, tokens = 0;
    const auto add = [&](double a, double b) {
      sum += std::abs(a - b);
      worst = std::max(worst, std::abs(a - b));
      ++compared;
    };
    for (size_t i = 0; i < runs[0].size(); ++i) {
      const Answer &one = runs[0][i], &two = runs[1][i];
      ASSERT_EQ(two.error, "");
      ASSERT_EQ(one.prompt_logprobs.size(), two.prompt_logprobs.size());
      for (size_t t = 0; t < one.prompt_logprobs.size(); ++t)
        add(one.prompt_logprobs[t], two.prompt_logprobs[t]);
      ASSERT_EQ(one.ids.size(), two.ids.size());
      for (size_t t = 0; t < one.ids.size(); ++t) {
        const auto& top = one.logprobs.at(t).top;
        if (top.at(0).logprob - top.at(1).logprob < kNearTie) break;
        ASSERT_EQ(one.ids[t], two.ids[t]) << "answer " << i << " token " << t;
        add(one.logprobs[t].logprob, two.logprobs.at(t).logprob);
        ++tokens;
      }
    }
    EXPECT_LT(sum / double(compared), 0.01);
    EXPECT_LT(worst, 0.03);
    EXPECT_GT(tokens, 50u);
    std::cout << GetParam() << (dense ? " dense" : " sparse") << ", two ranks and one: mean "
              << sum / double(compared) << ", worst " << worst << " nat over " << compared
              << " log-probabilities; " << tokens << " greedy tokens the same\n";
  }
}

/// Tokens and log-probabilities, bit for bit: from run to run, with and without graphs, warmed up or not.
TEST_P(EngineTwoGpus, DeterministicRunsAreTheSame) {
  const auto run = [&](bool graphs, bool warm) {
    EngineOptions with = options(2, true);
    with.graphs = graphs;
    const auto engine = Engine::create(with);
    if (warm) {
      engine->warm_up();
      engine->check_integrity();
      EXPECT_EQ(engine->stats().kv_blocks_used + engine->stats().kv_blocks_cached, 0);
    }
    return answers_of(*engine);
  };
  const auto first = run(true, false);
  for (const auto& [graphs, warm] : {std::pair(true, false), {true, true}, {false, false}}) {
    SCOPED_TRACE(testing::Message() << "graphs " << graphs << " warm " << warm);
    const auto again = run(graphs, warm);
    for (size_t i = 0; i < first.size(); ++i) {
      EXPECT_EQ(first[i].ids, again[i].ids);
      EXPECT_EQ(first[i].prompt_logprobs, again[i].prompt_logprobs);
      for (size_t t = 0; t < first[i].logprobs.size(); ++t)
        EXPECT_EQ(first[i].logprobs[t].logprob, again[i].logprobs.at(t).logprob) << "token " << t;
    }
  }
}

TEST_P(EngineTwoGpus, ARankThatFailsEndsEveryRequestWithTheCause) {
  for (const int rank : {0, 1}) {
    for (const bool graphs : {true, false}) {
      EngineOptions with = options(2);
      with.graphs = graphs;
      with.fault = {.step = 12, .rank = rank};
      auto engine = Engine::create(with);
      for (int i = 0; i < 10; ++i)
        engine->add_request(prompts()[size_t(i) % 5],
                            {.max_tokens = 50, .temperature = 0, .ignore_eos = true});
      const auto start = std::chrono::steady_clock::now();
      const auto answers = run_to_end(*engine);
      EXPECT_EQ(answers.size(), 10u);
      const std::string cause = "injected fault in step 12 of rank " + std::to_string(rank);
      for (const auto& [id, answer] : answers) EXPECT_EQ(answer.error, cause);
      EXPECT_EQ(engine->failure(), cause);
      engine.reset();
      EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, EngineTwoGpus, testing::Values("demo-llama", "demo-opt"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace spinfer
