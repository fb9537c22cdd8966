// Engine::observe_prompt_logits, and what a step is said to read.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>
#include <utility>

#include "tests/engine/engine_fixture.h"

namespace spinfer {
namespace {

double logprob_of(std::span<const float> logits, int32_t token) {
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double(logit));
  return double(logits[size_t(token)]) - std::log(sum);
}

TEST(PromptLogits, EachScoredTokenOnceAndInAgreementWithItsLogprob) {
  for (const int ranks : {1, 2}) {
    const TinyModel model;
    EngineOptions options = model.options();
    options.max_num_batched_tokens = 24;  // prompts are cut into chunks, and share steps
    options.tensor_parallel = ranks;
    const auto engine = Engine::create(options);

    std::mt19937 random(3);
    std::map<RequestId, std::vector<int32_t>> prompts;
    SamplingParams params;
    params.max_tokens = 0;
    params.prompt_logprobs = true;
    for (const int length : {1, 2, 17, 61}) {
      const auto prompt = random_prompt(random, length);
      prompts[engine->add_request(prompt, params)] = prompt;
    }
    std::map<std::pair<RequestId, int64_t>, double> seen;
    engine->observe_prompt_logits([&](RequestId id, int64_t position, std::span<const float> logits) {
      ASSERT_EQ(logits.size(), size_t{kTinyVocab});
      const auto entry = std::pair(id, position);
      EXPECT_FALSE(seen.contains(entry));
      seen[entry] = logprob_of(logits, prompts.at(id)[size_t(position)]);
    });
    const auto answers = run_to_end(*engine);
    EXPECT_EQ(seen.size(), size_t{0 + 1 + 16 + 60});
    for (const auto& [entry, logprob] : seen) {
      EXPECT_NEAR(logprob, answers.at(entry.first).prompt_logprobs[size_t(entry.second - 1)], 1e-4);
    }

    engine->observe_prompt_logits({});
    seen.clear();
    run_one(*engine, {1, 2, 3}, params);
    EXPECT_TRUE(seen.empty());
  }
}

TEST(StepWeights, LeaveOutAnEmbeddingThatOnlyGivesItsRows) {
  const TinyModel model;  // untied: the embedding is a table of its own
  const auto engine = Engine::create(model.options());
  const MemoryReport memory = engine->memory();
  EXPECT_EQ(memory.step_weights_bytes, memory.weights_bytes - 2 * int64_t{kTinyVocab} * 64);
}

}  // namespace
}  // namespace spinfer
