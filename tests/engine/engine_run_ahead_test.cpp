// Steps queued before the last one's tokens are read, and decode steps replayed from records: the answers
// must be those of an engine that does neither.
#include <gtest/gtest.h>

#include <random>

#include "tests/engine/engine_fixture.h"

namespace spinfer {
namespace {

struct Way {
  bool run_ahead, graphs;
};

EngineOptions options_of(const TinyModel& model, Way way) {
  EngineOptions options = model.options();
  options.run_ahead = way.run_ahead;
  options.graphs = way.graphs;
  return options;
}

/// Prompts and lengths of all kinds, greedy and sampled, with penalties, log-probabilities and scores.
std::vector<Answer> answers_of(const EngineOptions& options) {
  const auto engine = Engine::create(options);
  std::mt19937 random(11);
  std::vector<RequestId> ids;
  std::map<RequestId, Answer> answers;
  for (int i = 0; i < 24; ++i) {
    SamplingParams params{.max_tokens = 1 + int(random() % 40), .temperature = i % 3 ? 0.9f : 0.0f};
    params.seed = uint64_t(i);
    params.ignore_eos = i % 2 == 0;
    if (i % 5 == 0) params.repeat_penalty = 1.3f;
    if (i % 4 == 1) params.logprobs = i % 3;
    if (i % 7 == 3) params.prompt_logprobs = true;
    if (i == 17) params.max_tokens = 0, params.prompt_logprobs = true;
    ids.push_back(engine->add_request(random_prompt(random, 1 + int(random() % 60)), params));
    // Requests come while others run.
    for (unsigned step = random() % 3; step > 0; --step)
      for (auto& update : engine->step()) answers[update.id].add(std::move(update));
    engine->check_integrity();
  }
  for (auto& [id, answer] : run_to_end(*engine))
    answers[id] = [&] {
      Answer whole = answers[id];
      whole.ids.insert(whole.ids.end(), answer.ids.begin(), answer.ids.end());
      whole.logprobs.insert(whole.logprobs.end(), answer.logprobs.begin(), answer.logprobs.end());
      if (!answer.prompt_logprobs.empty()) whole.prompt_logprobs = answer.prompt_logprobs;
      whole.finish = answer.finish;
      whole.error = answer.error;
      whole.updates_after_end += answer.updates_after_end;
      return whole;
    }();
  std::vector<Answer> in_order;
  for (const RequestId id : ids) in_order.push_back(answers.at(id));
  return in_order;
}

void expect_equal(const std::vector<Answer>& got, const std::vector<Answer>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(got[i].ids, want[i].ids);
    EXPECT_EQ(got[i].finish, want[i].finish);
    EXPECT_EQ(got[i].error, "");
    EXPECT_EQ(got[i].prompt_logprobs, want[i].prompt_logprobs);
    EXPECT_EQ(got[i].updates_after_end, 0);
    ASSERT_EQ(got[i].logprobs.size(), want[i].logprobs.size());
    for (size_t t = 0; t < want[i].logprobs.size(); ++t)
      EXPECT_EQ(got[i].logprobs[t].logprob, want[i].logprobs[t].logprob);
  }
}

class EngineRunAhead : public testing::TestWithParam<Way> {};

TEST_P(EngineRunAhead, GivesTheSameAnswers) {
  const TinyModel model;
  expect_equal(answers_of(options_of(model, GetParam())), answers_of(options_of(model, {false, false})));
}

TEST_P(EngineRunAhead, SurvivesPreemption) {
  const TinyModel model;
  auto options = options_of(model, GetParam());
  options.num_kv_blocks = 14;
  auto plain = options_of(model, {false, false});
  plain.num_kv_blocks = 14;
  expect_equal(answers_of(options), answers_of(plain));
  const auto engine = Engine::create(options);
  std::mt19937 random(2);
  for (int i = 0; i < 8; ++i)
    engine->add_request(random_prompt(random, 30), {.max_tokens = 60, .temperature = 0, .ignore_eos = true});
  run_to_end(*engine);
  EXPECT_GT(engine->stats().preemptions, 0);
  EXPECT_EQ(engine->stats().kv_blocks_used, 0);
}

TEST_P(EngineRunAhead, CancelledRequestsEndAtOnce) {
  const TinyModel model;
  const auto engine = Engine::create(options_of(model, GetParam()));
  std::mt19937 random(5);
  const auto prompt = random_prompt(random, 20);
  const RequestId stays =
      engine->add_request(prompt, {.max_tokens = 30, .temperature = 0, .ignore_eos = true});
  const RequestId goes =
      engine->add_request(random_prompt(random, 9), {.max_tokens = 50, .ignore_eos = true});
  std::map<RequestId, Answer> answers;
  for (int i = 0; i < 4; ++i)
    for (auto& update : engine->step()) answers[update.id].add(std::move(update));
  engine->cancel(goes);
  for (auto& update : engine->step()) answers[update.id].add(std::move(update));
  EXPECT_EQ(answers.at(goes).finish, FinishReason::cancelled);
  while (engine->has_work())
    for (auto& update : engine->step()) answers[update.id].add(std::move(update));
  EXPECT_EQ(answers.at(goes).updates_after_end, 0);
  EXPECT_EQ(engine->stats().kv_blocks_used, 0);
  const auto alone = Engine::create(options_of(model, {false, false}));
  EXPECT_EQ(answers.at(stays).ids,
            run_one(*alone, prompt, {.max_tokens = 30, .temperature = 0, .ignore_eos = true}).ids);
}

TEST_P(EngineRunAhead, NothingIsLeftInTheQueueWhenRequestsEnd) {
  const TinyModel model;
  const auto engine = Engine::create(options_of(model, GetParam()));
  std::mt19937 random(6);
  for (int round = 0; round < 3; ++round) {
    engine->add_request(random_prompt(random, 12), {.max_tokens = 7, .temperature = 0, .ignore_eos = true});
    int steps = 0, tokens = 0;
    while (engine->has_work()) {
      for (auto& update : engine->step()) tokens += int(update.new_ids.size());
      ++steps;
    }
    EXPECT_EQ(tokens, 7);
    EXPECT_EQ(steps, 7);
    EXPECT_TRUE(engine->step().empty());
  }
}

INSTANTIATE_TEST_SUITE_P(Ways, EngineRunAhead,
                         testing::Values(Way{true, false}, Way{false, true}, Way{true, true}),
                         [](const auto& info) {
                           return std::string(info.param.run_ahead ? "ahead" : "") +
                                  (info.param.graphs ? "graphs" : "");
                         });

}  // namespace
}  // namespace spinfer
