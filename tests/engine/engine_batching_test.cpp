// An answer must not depend on what else runs, on chunks, preemption or cached prefixes.
#include <gtest/gtest.h>

#include "tests/engine/engine_fixture.h"

namespace spinfer {
namespace {

struct Job {
  std::vector<int32_t> prompt;
  SamplingParams params;
};

std::vector<Job> make_jobs(int count) {
  std::mt19937 random(29);
  const auto shared = random_prompt(random, 60);
  std::vector<Job> jobs;
  for (int i = 0; i < count; ++i) {
    Job job;
    job.prompt.assign(shared.begin(), shared.begin() + (i % 2 ? random() % 60 : 0));
    const auto rest = random_prompt(random, 1 + int(random() % 25));
    job.prompt.insert(job.prompt.end(), rest.begin(), rest.end());
    job.params.max_tokens = 1 + int(random() % 40);
    job.params.temperature = i % 3 ? 1.0f : 0.0f;
    job.params.repeat_penalty = i % 4 == 0 ? 1.3f : 1.0f;
    job.params.seed = random();
    job.params.logprobs = i % 5 ? int(random() % 4) : -1;
    job.params.prompt_logprobs = i % 7 == 0;
    jobs.push_back(job);
  }
  return jobs;
}

void expect_same(const Answer& alone, const Answer& batched, size_t job) {
  SCOPED_TRACE(testing::Message() << "job " << job);
  EXPECT_EQ(alone.ids, batched.ids);
  EXPECT_EQ(alone.finish, batched.finish);
  EXPECT_EQ(alone.prompt_logprobs, batched.prompt_logprobs);
  EXPECT_EQ(batched.updates_after_end, 0);
  ASSERT_EQ(alone.logprobs.size(), batched.logprobs.size());
  for (size_t i = 0; i < alone.logprobs.size(); ++i) {
    EXPECT_EQ(alone.logprobs[i].logprob, batched.logprobs[i].logprob);
    ASSERT_EQ(alone.logprobs[i].top.size(), batched.logprobs[i].top.size());
  }
}

struct Setting {
  const char* name;
  int64_t blocks;
  int block_size, seqs, tokens;
  bool prefix_caching;
};

void PrintTo(const Setting& setting, std::ostream* out) {
  *out << setting.name;
}

class EngineBatching : public testing::TestWithParam<Setting> {};

TEST_P(EngineBatching, TokensAreThoseOfTheRequestAlone) {
  const TinyModel model;
  const std::vector<Job> jobs = make_jobs(48);
  std::vector<Answer> alone;
  {
    auto options = model.options();
    options.max_num_seqs = 1;
    options.block_size = GetParam().block_size;  // attention sums block by block
    options.prefix_caching = false;
    const auto engine = Engine::create(options);
    for (const Job& job : jobs) alone.push_back(run_one(*engine, job.prompt, job.params));
  }

  auto options = model.options();
  options.num_kv_blocks = GetParam().blocks;
  options.block_size = GetParam().block_size;
  options.max_num_seqs = GetParam().seqs;
  options.max_num_batched_tokens = GetParam().tokens;
  options.prefix_caching = GetParam().prefix_caching;
  const auto engine = Engine::create(options);
  std::mt19937 random(31);
  std::map<RequestId, size_t> job_of;
  std::map<RequestId, Answer> answers;
  std::vector<RequestId> doomed;
  for (size_t next = 0; next < jobs.size() || engine->has_work();) {
    while (next < jobs.size() && random() % 3) {
      job_of[engine->add_request(jobs[next].prompt, jobs[next].params)] = next;
      ++next;
      if (random() % 4 == 0)
        doomed.push_back(engine->add_request(jobs[random() % next].prompt, {.max_tokens = 20}));
    }
    if (!doomed.empty() && random() % 4 == 0) {
      engine->cancel(doomed.back());
      doomed.pop_back();
    }
    for (auto& update : engine->step()) answers[update.id].add(std::move(update));
    engine->check_integrity();
  }
  for (const auto& [id, job] : job_of) expect_same(alone[job], answers.at(id), job);
  EXPECT_EQ(engine->stats().kv_blocks_used, 0);
  if (GetParam().prefix_caching) {
    EXPECT_GT(engine->stats().prefix_hit_tokens, 0);
  }
  if (GetParam().blocks < 16) {
    EXPECT_GT(engine->stats().preemptions, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Settings, EngineBatching,
                         testing::Values(Setting{"roomy", 200, 16, 16, 4096, false},
                                         Setting{"prefixes", 200, 16, 16, 4096, true},
                                         Setting{"chunks", 60, 16, 5, 7, true},
                                         Setting{"preemption", 9, 16, 8, 64, true},
                                         Setting{"preemption_without_prefixes", 9, 16, 8, 64, false},
                                         Setting{"small_blocks", 40, 4, 8, 33, true},
                                         Setting{"one_token_steps", 30, 8, 4, 1, true}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(EnginePrefixCache, HitGivesTheSameAnswerAndIsReported) {
  const TinyModel model;
  const auto engine = Engine::create(model.options());
  std::mt19937 random(1);
  const auto prompt = random_prompt(random, 100);
  const SamplingParams params{.max_tokens = 20, .temperature = 0, .ignore_eos = true, .logprobs = 0};
  const Answer first = run_one(*engine, prompt, params);
  const Answer second = run_one(*engine, prompt, params);
  EXPECT_EQ(first.cached_prompt_tokens, 0);
  EXPECT_EQ(second.cached_prompt_tokens, 96);
  EXPECT_EQ(first.ids, second.ids);
  for (size_t i = 0; i < first.logprobs.size(); ++i)
    EXPECT_EQ(first.logprobs[i].logprob, second.logprobs[i].logprob);
  auto longer = prompt;  // the answer itself is in the cache, too: a second turn of a chat
  longer.insert(longer.end(), first.ids.begin(), first.ids.end());
  longer.push_back(7);
  EXPECT_EQ(run_one(*engine, longer, params).cached_prompt_tokens, 112);
}

TEST(EnginePreemption, SixtyFourLongRequestsFinishInThirtyTwoBlocks) {
  const TinyModel model;
  auto options = model.options();
  options.num_kv_blocks = 32;
  options.max_num_seqs = 64;
  const auto engine = Engine::create(options);
  std::mt19937 random(2);
  for (int i = 0; i < 64; ++i) {
    engine->add_request(random_prompt(random, 40), {.max_tokens = 120, .temperature = 1, .ignore_eos = true});
  }
  const auto answers = run_to_end(*engine);
  ASSERT_EQ(answers.size(), 64u);
  for (const auto& [id, answer] : answers) EXPECT_EQ(answer.ids.size(), 120u);
  EXPECT_GT(engine->stats().preemptions, 0);
}

}  // namespace
}  // namespace spinfer
