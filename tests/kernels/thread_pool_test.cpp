#include "kernels/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <thread>
#include <vector>

namespace spinfer {
namespace {

TEST(ThreadPool, RunsEachIndexOnce) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (int64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> calls(static_cast<size_t>(count));
      pool.parallel_for(count, [&](int64_t i) { ++calls[size_t(i)]; });
      for (auto& c : calls) EXPECT_EQ(c, 1);
    }
  }
}

TEST(ThreadPool, RunCallsEachThreadOnce) {
  ThreadPool pool(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::atomic<int>> calls(3);
    pool.run([&](int thread, int threads) {
      EXPECT_EQ(threads, 3);
      ++calls[size_t(thread)];
    });
    for (auto& c : calls) ASSERT_EQ(c, 1);
  }
}

TEST(ThreadPool, DefaultUsesAtLeastOneThread) {
  EXPECT_GE(ThreadPool().threads(), 1);
  EXPECT_GE(ThreadPool(-4).threads(), 1);
}

TEST(ThreadPool, ExceptionReachesTheCallerAndThePoolStaysUsable) {
  for (int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 20; ++round) {
      std::atomic<int> calls{0};
      std::atomic<bool> thrown{false};
      const auto body = [&](int64_t i) {
        ++calls;
        if (i == 3) {
          thrown = true;
          throw std::runtime_error("body 3");
        }
        while (i > 3 && !thrown) std::this_thread::yield();  // whoever has 3 may have lost its core
        if (i > 3) std::this_thread::sleep_for(std::chrono::microseconds(1));
      };
      EXPECT_THROW(pool.parallel_for(100000, body), std::runtime_error);
      EXPECT_LT(calls, 100000) << "the others stop early";
      std::atomic<int64_t> sum{0};
      pool.parallel_for(10, [&](int64_t i) { sum += i; });
      EXPECT_EQ(sum, 45);
    }
  }
}

TEST(ThreadPool, ExceptionOnAnyThreadOfRunIsRethrown) {
  ThreadPool pool(3);
  for (int bad = 0; bad < 3; ++bad) {
    EXPECT_THROW(pool.run([bad](int thread, int) {
      if (thread == bad) throw std::runtime_error("thread");
    }),
                 std::runtime_error);
  }
}

}  // namespace
}  // namespace spinfer
