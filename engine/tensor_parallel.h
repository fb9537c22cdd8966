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
  /// Where a rank that failed neither comes back nor can be freed within seconds, the process ends with
  /// status 1: nothing else gets rid of a thread or a kernel that hangs.
  ~TensorParallel();
  TensorParallel(const TensorParallel&) = delete;
  TensorParallel& operator=(const TensorParallel&) = delete;

  int world() const { return int(runners_.size()); }
  Runner& rank(int r) { return *runners_[size_t(r)]; }

  /// Runs body(runner) once on each rank and returns when all are done. If one throws, the group is aborted
  /// so that nobody waits for it, and the exception that came first is rethrown once all have returned; no
  /// later command will run then. `watchdog_seconds` > 0: several ranks that take longer count as failed, and
  /// a failure is rethrown after seconds although a rank has not returned; so `body` must own what it uses.
  void on_all(std::function<void(Runner&)> body, double watchdog_seconds = 0);

 private:
  class Threads;

  const Backend& backend_;
  std::vector<std::unique_ptr<Runner>> runners_;
  bool connected_ = false;
  std::unique_ptr<Threads>
      threads_;  // null with one rank; declared last: the threads end before the runners go
};

}  // namespace spinfer
