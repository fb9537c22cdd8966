// The ranks of one model: a Runner and a thread each, one command at a time on all of them.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "engine/runner.h"

namespace spinfer {

class TensorParallel {
 public:
  /// Opens `world` devices (GPUs 0 … world-1, or CPU contexts that share `options.threads`) and joins them in
  /// a group. A single rank runs on the calling thread. Throws `UsageError` if there are fewer devices.
  TensorParallel(const Backend& backend, int world, const DeviceOptions& options);
  ~TensorParallel();
  TensorParallel(const TensorParallel&) = delete;
  TensorParallel& operator=(const TensorParallel&) = delete;

  int world() const { return int(runners_.size()); }
  Runner& rank(int r) { return *runners_[size_t(r)]; }

  /// Runs body(runner) once on each rank and returns when all are done. If one throws, the group is aborted
  /// so that nobody waits for it, and the exception that came first is rethrown once all have returned; no
  /// later command will run then. `watchdog_seconds` > 0: several ranks that take longer count as failed.
  void on_all(const std::function<void(Runner&)>& body, double watchdog_seconds = 0);

 private:
  class Threads;

  const Backend& backend_;
  std::vector<std::unique_ptr<Runner>> runners_;
  std::unique_ptr<Threads>
      threads_;  // null with one rank; declared last: the threads end before the runners go
};

}  // namespace spinfer
