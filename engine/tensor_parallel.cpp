#include "engine/tensor_parallel.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <string_view>
#include <thread>

#include "kernels/check.h"

namespace spinfer {

/// One thread per rank, all of which do one command at a time.
class TensorParallel::Threads {
 public:
  using Command = std::function<void(int rank)>;

  explicit Threads(int world) {
    for (int rank = 0; rank < world; ++rank) threads_.emplace_back([this, rank] { work(rank); });
  }
  ~Threads() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  /// Runs the command on all ranks and waits for them. `abort(cause)` is called once, for the first error of
  /// any rank or when the ranks are not done after `seconds` (0: no limit). Rethrows that error.
  void run(const Command& command, double seconds, const std::function<void(const char*)>& abort) {
    std::unique_lock lock(mutex_);
    check(!first_error_, "the ranks stopped after an earlier error");
    command_ = &command;
    abort_ = &abort;
    running_ = int(threads_.size());
    ++generation_;
    changed_.notify_all();
    const auto done = [this] { return running_ == 0; };
    if (seconds > 0 && !changed_.wait_for(lock, std::chrono::duration<double>(seconds), done)) {
      const auto cause =
          fmt::format("{} of {} ranks did not finish a step within {} s", running_, threads_.size(), seconds);
      lock.unlock();
      record(std::make_exception_ptr(Error(cause)), cause.c_str());
      lock.lock();
    }
    changed_.wait(lock, done);
    if (first_error_) std::rethrow_exception(first_error_);
  }

 private:
  void work(int rank) {
    uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return stopping_ || generation_ != seen; });
      if (stopping_) return;
      seen = generation_;
      lock.unlock();
      try {
        (*command_)(rank);
      } catch (const std::exception& error) {
        record(std::current_exception(), error.what());
      } catch (...) {
        record(std::current_exception(), "unknown error");
      }
      lock.lock();
      if (--running_ == 0) changed_.notify_all();
    }
  }

  /// Later errors are mostly of ranks that the first one woke.
  void record(std::exception_ptr error, const char* cause) {
    {
      std::lock_guard lock(mutex_);
      if (first_error_) return;
      first_error_ = std::move(error);
    }
    (*abort_)(cause);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  const Command* command_ = nullptr;
  const std::function<void(const char*)>* abort_ = nullptr;
  uint64_t generation_ = 0;  // counts commands; every rank takes part once in each
  int running_ = 0;
  bool stopping_ = false;
  std::exception_ptr first_error_;  // stays: ranks that were aborted run nothing more
  std::vector<std::thread> threads_;
};

TensorParallel::TensorParallel(const Backend& backend, int world, const DeviceOptions& options)
    : backend_(backend), runners_(size_t(world)) {
  const bool host = backend.name == std::string_view("cpu");
  if (!host && world > backend.device_count()) {
    throw UsageError(fmt::format("--tp {}: this machine has {} usable GPUs", world, backend.device_count()));
  }
  DeviceOptions each = options;
  if (host && world > 1) {
    const int budget = options.threads > 0 ? options.threads : int(std::thread::hardware_concurrency());
    each.threads = std::max(1, budget / world);
  }
  const auto open = [&](int rank) {
    DeviceOptions mine = each;
    mine.ordinal = host ? 0 : rank;
    runners_[size_t(rank)] = std::make_unique<Runner>(backend, mine, Shard{rank, world});
  };
  if (world == 1) {
    open(0);
  } else {
    threads_ = std::make_unique<Threads>(world);
    threads_->run(open, 0, [](const char*) {});  // nobody waits for another yet
  }
  std::vector<DeviceContext*> contexts;
  for (const auto& runner : runners_) contexts.push_back(&runner->device().context());
  backend.connect(contexts);
}

TensorParallel::~TensorParallel() = default;

void TensorParallel::on_all(const std::function<void(Runner&)>& body, double watchdog_seconds) {
  if (!threads_) return body(*runners_[0]);
  const auto abort = [this](const char* cause) {
    for (const auto& runner : runners_) backend_.abort_group(runner->device().context(), cause);
  };
  threads_->run([&](int rank) { body(*runners_[size_t(rank)]); }, watchdog_seconds, abort);
}

}  // namespace spinfer
