// A fixed set of threads for data-parallel loops on the host.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace spinfer {

class ThreadPool {
 public:
  /// `threads` ≤ 0: one per core this process may run on. The calling thread takes part, so 1 starts none.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  /// Runs body(i) for i in [0, count), each once, on all threads; returns when all are done. The first exception
  /// thrown by a body is rethrown here after the others stopped. Not re-entrant.
  void parallel_for(int64_t count, const std::function<void(int64_t i)>& body);
  /// Runs body(thread, threads) once on each thread: for kernels that divide the work themselves.
  void run(const std::function<void(int thread, int threads)>& body);

 private:
  struct State;
  int threads_;
  std::unique_ptr<State> state_;
};

}  // namespace spinfer
