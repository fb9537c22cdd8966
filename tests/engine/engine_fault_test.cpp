// A device that fails in the middle of a step: every request learns the cause, nothing hangs, the blocks come
// back.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <stdexcept>
#include <thread>

#include "engine/tensor_parallel.h"
#include "kernels/check.h"
#include "tests/engine/engine_fixture.h"
#include "tests/engine/faulty_backend.h"

namespace spinfer {
namespace {

TEST(EngineFault, AVocabularyTheBackendCannotSampleFromIsRefusedBeforeLoading) {
  const TinyModel model;
  Backend backend = faulty_backend();
  auto options = model.options();
  options.backend = &backend;
  EXPECT_NO_THROW(Engine::create(options));
  backend.most_vocab = load_config(options.model).vocab_size - 1;
  EXPECT_THROW(Engine::create(options), Error);
}

class EngineFaultOnRanks : public testing::TestWithParam<int> {};

TEST_P(EngineFaultOnRanks, EndsEveryRequestWithTheCause) {
  const TinyModel model;
  const Backend backend = faulty_backend();
  auto options = model.options();
  options.backend = &backend;
  options.tensor_parallel = GetParam();
  options.max_num_seqs = 3;
  calls_until_fault = -1;
  const auto engine = Engine::create(options);
  std::mt19937 random(3);
  for (int i = 0; i < 5; ++i)
    engine->add_request(random_prompt(random, 9), {.max_tokens = 50, .ignore_eos = true});
  calls_until_fault = 4 * 2 * GetParam();  // in the fifth step, on one rank

  const auto start = std::chrono::steady_clock::now();
  const auto answers = run_to_end(*engine);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
  ASSERT_EQ(answers.size(), 5u);
  for (const auto& [id, answer] : answers) {
    EXPECT_EQ(answer.finish, FinishReason::error);
    EXPECT_EQ(answer.error, "injected fault in attention");
    EXPECT_EQ(answer.ids.size(), id <= 3 ? 4u : 0u);
  }
  EXPECT_EQ(engine->failure(), "injected fault in attention");
  EXPECT_FALSE(engine->has_work());
  EXPECT_TRUE(engine->step().empty());
  EXPECT_EQ(engine->stats().kv_blocks_used, 0);
  try {
    engine->add_request({1}, {});
    FAIL() << "a failed engine took a request";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("injected fault"), std::string::npos) << e.what();
  }
}

TEST(EngineFault, ARankThatStopsLoadingStopsTheOthers) {
  const TinyModel model;
  auto options = model.options();
  options.tensor_parallel = 4;
  std::atomic<int> reports = 0;
  options.load_progress = [&](int64_t, int64_t) {
    if (++reports == 3) throw Error("enough");
  };
  try {
    Engine::create(options);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "enough");
  }
  EXPECT_EQ(reports, 3);
}

TEST(EngineFault, NanInTheLogitsOfOneRequestHarmsNoOther) {
  const TinyModel model;
  const Backend backend = faulty_backend(cpu_backend().attention, logits_with_nan);
  const auto run = [&](const Backend& table, int calls) {
    auto options = model.options();
    options.backend = &table;
    calls_until_fault = calls;
    const auto engine = Engine::create(options);
    std::mt19937 random(3);
    for (int i = 0; i < 3; ++i) {
      engine->add_request(random_prompt(random, 9), {.max_tokens = 12, .temperature = 0, .ignore_eos = true});
    }
    auto answers = run_to_end(*engine);
    EXPECT_TRUE(engine->failure().empty());
    EXPECT_EQ(engine->stats().kv_blocks_used, 0);
    return answers;
  };
  const auto clean = run(cpu_backend(), -1);
  const auto answers = run(backend, 4);  // in the fifth step, row 0: the first request
  ASSERT_EQ(answers.size(), 3u);
  int failed = 0;
  for (const auto& [id, answer] : answers) {
    if (answer.finish == FinishReason::error) {
      ++failed;
      EXPECT_NE(answer.error.find("NaN"), std::string::npos) << answer.error;
      EXPECT_EQ(answer.ids.size(), 4u);
    } else {
      EXPECT_EQ(answer.ids, clean.at(id).ids);
    }
  }
  EXPECT_EQ(failed, 1);
}

INSTANTIATE_TEST_SUITE_P(Ranks, EngineFaultOnRanks, testing::Values(1, 2), testing::PrintToStringParamName());

TEST(TensorParallel, RunsEveryRankOnceAndJoinsThem) {
  TensorParallel ranks(cpu_backend(), 3, {.threads = 3});
  std::vector<int> runs(3);
  std::vector<float> sums(3, -1);
  for (int round = 0; round < 50; ++round) {
    ranks.on_all([&](Runner& runner) {
      const int rank = runner.shard().rank;
      ++runs[size_t(rank)];
      Half x = to_half(float(rank + 1));
      cpu_backend().all_reduce(runner.device().context(), &x, 1);
      sums[size_t(rank)] = to_float(x);
    });
  }
  EXPECT_EQ(runs, (std::vector<int>{50, 50, 50}));
  EXPECT_EQ(sums, (std::vector<float>{6, 6, 6}));
}

TEST(TensorParallel, RethrowsTheFirstErrorAndWakesWaitingRanks) {
  TensorParallel ranks(cpu_backend(), 3, {.threads = 3});
  std::atomic<int> woken = 0;
  const auto body = [&](Runner& runner) {
    if (runner.shard().rank == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));  // the others wait by now
      throw Error("rank 1 gave up");
    }
    Half x;
    try {
      cpu_backend().all_reduce(runner.device().context(), &x, 1);
    } catch (const Error&) {
      ++woken;
      throw;
    }
  };
  try {
    ranks.on_all(body);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "rank 1 gave up");
  }
  EXPECT_EQ(woken, 2);
  EXPECT_THROW(ranks.on_all([](Runner&) {}), Error);
}

TEST(TensorParallel, WatchdogEndsAStepThatHangs) {
  TensorParallel ranks(cpu_backend(), 2, {.threads = 2});
  EXPECT_NO_THROW(ranks.on_all([](Runner&) {}, 5));
  try {
    ranks.on_all(
        [&](Runner& runner) {
          if (runner.shard().rank == 0) return;  // never comes to the collective
          Half x;
          cpu_backend().all_reduce(runner.device().context(), &x, 1);
        },
        0.05);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "1 of 2 ranks did not finish a step within 0.05 s");
  }
}

/// A rank that hangs outside of a collective: the caller learns of it all the same.
TEST(TensorParallel, WatchdogDoesNotWaitForARankThatNeverComesBack) {
  std::promise<void> release;
  const std::shared_future<void> released = release.get_future().share();
  std::atomic<bool> woken = false;
  TensorParallel ranks(cpu_backend(), 3, {.threads = 3});
  const auto start = std::chrono::steady_clock::now();
  try {
    ranks.on_all(
        [released, &woken](Runner& runner) {
          if (runner.shard().rank == 2) return released.wait();
          Half x;
          try {
            cpu_backend().all_reduce(runner.device().context(), &x, 1);
          } catch (const Error&) {
            woken = true;
            throw;
          }
        },
        0.05);
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "3 of 3 ranks did not finish a step within 0.05 s");
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(8));
  EXPECT_TRUE(woken);
  EXPECT_THROW(ranks.on_all([](Runner&) {}, 1), Error);
  release.set_value();  // so that it can be joined
}

TEST(TensorParallelDeathTest, ARankThatCannotBeJoinedEndsTheProcess) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_EXIT(
      {
        TensorParallel ranks(cpu_backend(), 2, {.threads = 2});
        try {
          ranks.on_all(
              [](Runner& runner) {
                if (runner.shard().rank == 1) std::this_thread::sleep_for(std::chrono::hours(1));
                throw Error("rank 0 gave up");
              },
              60);
        } catch (const Error&) {
        }
      },
      testing::ExitedWithCode(1), "rank 0 gave up; a rank hangs");
}

TEST(TensorParallel, OneRankRunsOnTheCallersThread) {
  TensorParallel one(cpu_backend(), 1, {.threads = 1});
  std::thread::id id;
  one.on_all([&](Runner&) { id = std::this_thread::get_id(); });
  EXPECT_EQ(id, std::this_thread::get_id());
  EXPECT_THROW(one.on_all([](Runner&) { throw std::runtime_error("alone"); }), std::runtime_error);
}

}  // namespace
}  // namespace spinfer
