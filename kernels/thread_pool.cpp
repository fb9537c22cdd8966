#include "kernels/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "kernels/check.h"

namespace spinfer {
namespace {

int usable_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
  return int(std::thread::hardware_concurrency());
}

/// Looks for a while before sleeping: waking a thread takes tens of µs, as long as a small linear. Not longer
/// than that, so that a pool with more threads than free cores loses little.
template <class Condition>
void spin_until(const Condition& condition) {
  constexpr auto kLongest = std::chrono::microseconds(50);
  const auto begin = std::chrono::steady_clock::now();
  while (!condition() && std::chrono::steady_clock::now() - begin < kLongest) {
#if defined(__x86_64__)
    for (int i = 0; i < 8; ++i) __builtin_ia32_pause();
#endif
  }
}

}  // namespace

struct ThreadPool::State {
  std::mutex mutex;
  std::condition_variable work_ready, work_done;
  const std::function<void(int, int)>* body = nullptr;
  // Written under the mutex; read without it only by who spins.
  std::atomic<uint64_t> generation{0};  // counts calls of run(); a worker takes part once in each
  std::atomic<int> running{0};
  std::atomic<bool> stopping{false};
  std::exception_ptr error;
  std::vector<std::thread> workers;

  /// Also of those that a pool got before it could have no more.
  ~State() {
    {
      std::lock_guard lock(mutex);
      stopping = true;
    }
    work_ready.notify_all();
    for (auto& worker : workers) worker.join();
  }
  void work(int thread, int threads);
};

void ThreadPool::State::work(int thread, int threads) {
  uint64_t seen = 0;
  std::unique_lock lock(mutex);
  while (true) {
    lock.unlock();
    spin_until([&] { return stopping || generation != seen; });
    lock.lock();
    work_ready.wait(lock, [&] { return stopping || generation != seen; });
    if (stopping) return;
    seen = generation;
    const auto* mine = body;
    lock.unlock();
    std::exception_ptr failure;
    try {
      (*mine)(thread, threads);
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    if (failure && !error) error = failure;
    if (--running == 0) work_done.notify_one();
  }
}

ThreadPool::ThreadPool(int threads)
    : threads_(threads > 0 ? threads : std::max(1, usable_cores())), state_(std::make_unique<State>()) {
  State& state = *state_;
  for (int t = 1; t < threads_; ++t) {
    try {
      state.workers.emplace_back([&state, t, all = threads_] { state.work(t, all); });
    } catch (const std::system_error& error) {
      fail("thread {} of {} cannot be started: {}; fewer may do (-t)", t + 1, threads_, error.what());
    }
  }
}

ThreadPool::~ThreadPool() = default;

void ThreadPool::run(const std::function<void(int, int)>& body) {
  if (threads_ == 1) return body(0, 1);
  State& s = *state_;
  {
    std::lock_guard lock(s.mutex);
    s.body = &body;
    s.error = nullptr;
    s.running = threads_ - 1;
    ++s.generation;
  }
  s.work_ready.notify_all();
  std::exception_ptr error;
  try {
    body(0, threads_);
  } catch (...) {
    error = std::current_exception();
  }
  spin_until([&] { return s.running == 0; });
  std::unique_lock lock(s.mutex);
  s.work_done.wait(lock, [&] { return s.running == 0; });
  s.body = nullptr;
  if (error) std::rethrow_exception(error);
  if (s.error) std::rethrow_exception(s.error);
}

void ThreadPool::parallel_for(int64_t count, const std::function<void(int64_t)>& body) {
  if (count <= 0) return;
  std::atomic<int64_t> next{0};
  run([&](int, int) {
    try {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(i);
    } catch (...) {
      next.store(count, std::memory_order_relaxed);
      throw;
    }
  });
}

}  // namespace spinfer
