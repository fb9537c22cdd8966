// A device that fails in the middle of a step: every request learns the cause, nothing hangs, the blocks come
// back.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <limits>
#include <stdexcept>
#include <thread>

#include "engine/tensor_parallel.h"
#include "kernels/check.h"
#include "tests/engine/engine_fixture.h"

namespace spinfer {
namespace {

// Read by the op below, which is a plain function.
std::atomic<int> calls_until_fault{-1};

void attention_with_fault(DeviceContext& context, const AttentionArgs& args) {
  if (calls_until_fault.fetch_sub(1) == 0) throw std::runtime_error("injected fault in attention");
  cpu_backend().attention(context, args);
}

void logits_with_nan(DeviceContext& context, const LogitsArgs& args) {
  cpu_backend().logits(context, args);
  if (calls_until_fault.fetch_sub(1) == 0)
    args.logits[args.w.m / 2] = std::numeric_limits<float>::quiet_NaN();
}

/// The CPU's table with two ops replaced.
Backend faulty_backend(void (&attention)(DeviceContext&, const AttentionArgs&) = attention_with_fault,
                       void (&logits)(DeviceContext&, const LogitsArgs&) = cpu_backend().logits) {
  const Backend& cpu = cpu_backend();
  return {.name = cpu.name,
          .host = cpu.host,
          .most_vocab = cpu.most_vocab,
          .device_count = cpu.device_count,
          .open = cpu.open,
          .close = cpu.close,
          .info = cpu.info,
          .software = cpu.software,
          .allocate = cpu.allocate,
          .release = cpu.release,
          .upload = cpu.upload,
          .download = cpu.download,
          .fill_zero = cpu.fill_zero,
          .synchronize = cpu.synchronize,
          .prepare_linear = cpu.prepare_linear,
          .prepare_from_device = cpu.prepare_from_device,
          .fill_random = cpu.fill_random,
          .allocate_host = cpu.allocate_host,
          .release_host = cpu.release_host,
          .download_later = cpu.download_later,
          .mark = cpu.mark,
          .wait = cpu.wait,
          .between = cpu.between,
          .record = cpu.record,
          .replay = cpu.replay,
          .discard = cpu.discard,
          .leave_out = cpu.leave_out,
          .read_gbps = cpu.read_gbps,
          .embed = cpu.embed,
          .add_norm = cpu.add_norm,
          .linear = cpu.linear,
          .gated_linear = cpu.gated_linear,
          .defers_norm = cpu.defers_norm,
          .rope_append = cpu.rope_append,
          .attention = attention,
          .gated_activation = cpu.gated_activation,
          .gather_rows = cpu.gather_rows,
          .logits = logits,
          .sample = cpu.sample,
          .logprobs = cpu.logprobs,
          .input_statistics = cpu.input_statistics,
          .inverse_factor = cpu.inverse_factor,
          .sparsegpt = cpu.sparsegpt,
          .connect = cpu.connect,
          .all_reduce = cpu.all_reduce,
          .all_gather_cols = cpu.all_gather_cols,
          .abort_group = cpu.abort_group};
}

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
