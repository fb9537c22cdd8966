#include "engine/tensor_parallel.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <future>
#include <mutex>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include "kernels/check.h"

namespace spinfer {

namespace {

using Seconds = std::chrono::duration<double>;

/// After a failure: how long ranks have to come back before they count as hung, and to end.
constexpr Seconds kReturnLimit{2}, kEndLimit{2};
/// A pause of the whole process, however long, uses up no more than this of the watchdog's time.
constexpr Seconds kWatchSlice{0.25};

}  // namespace

/// One thread per rank, all of which do one command at a time.
class TensorParallel::Threads {
 public:
  using Command = std::function<void(int rank)>;
  using Abort = std::function<void(const char* cause)>;

  /// `abort` is called once, on a thread of its own, for the first error.
  Threads(int world, Abort abort) : abort_(std::move(abort)) {
    try {
      for (int rank = 0; rank < world; ++rank) threads_.emplace_back([this, rank] { work(rank); });
    } catch (const std::system_error& error) {
      const size_t started = threads_.size();
      end();
      fail("--tp {}: the thread of rank {} cannot be started: {}", world, started, error.what());
    }
  }
  ~Threads() { end(); }

  /// Runs the command on all ranks and waits for them, with `seconds` > 0 not longer than that and
  /// kReturnLimit more after a failure. Rethrows the first error.
  void run(Command command, double seconds) {
    std::unique_lock lock(mutex_);
    check(!first_error_, "the ranks stopped after an earlier error");
    command_ = std::make_shared<const Command>(std::move(command));
    running_ = int(threads_.size());
    ++generation_;
    changed_.notify_all();
    const auto done = [this] { return running_ == 0; };
    if (seconds > 0) {
      watch(lock, Seconds(seconds));
      if (first_error_) changed_.wait_for(lock, kReturnLimit, done);
    } else {
      changed_.wait(lock, done);
    }
    if (first_error_) std::rethrow_exception(first_error_);
  }

  /// What the first error said; empty without one.
  std::string cause() {
    std::lock_guard lock(mutex_);
    return cause_;
  }

 private:
  void end() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    for (auto& thread : threads_) thread.join();
    if (aborting_.joinable()) aborting_.join();
  }

  void work(int rank) {
    uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return stopping_ || generation_ != seen; });
      if (stopping_) return;
      seen = generation_;
      const std::shared_ptr<const Command> command =
          command_;  // the caller may be gone before a rank that hangs
      lock.unlock();
      std::exception_ptr error;
      std::string cause = "unknown error";
      try {
        (*command)(rank);
      } catch (const std::exception& e) {
        error = std::current_exception();
        cause = e.what();
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      if (error) record(error, cause);
      if (--running_ == 0) changed_.notify_all();
    }
  }

  /// Until all ranks are done, one has failed, or they have had `left`.
  void watch(std::unique_lock<std::mutex>& lock, Seconds left) {
    const double limit = left.count();
    const auto settled = [this] { return running_ == 0 || first_error_; };
    while (!changed_.wait_for(lock, std::min(left, kWatchSlice), settled)) {
      left -= kWatchSlice;
      if (left.count() > 0) continue;
      const auto cause =
          fmt::format("{} of {} ranks did not finish a step within {} s", running_, threads_.size(), limit);
      return record(std::make_exception_ptr(Error(cause)), cause);
    }
  }

  /// Under the mutex. Later errors are mostly of ranks that the first one woke.
  void record(std::exception_ptr error, const std::string& cause) {
    if (first_error_) return;
    first_error_ = std::move(error);
    cause_ = cause.empty() ? "unknown error" : cause;
    // Aborting waits for the devices where a library does; the requests are not to wait for it.
    try {
      aborting_ = std::thread([this] { abort_(cause_.c_str()); });
    } catch (const std::system_error&) {  // no thread is to be had: they wait
      abort_(cause_.c_str());
    }
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  const Abort abort_;
  std::shared_ptr<const Command> command_;
  uint64_t generation_ = 0;  // counts commands; every rank takes part once in each
  int running_ = 0;
  bool stopping_ = false;
  std::exception_ptr first_error_;  // stays: ranks that were aborted run nothing more
  std::string cause_;               // written with it
  std::vector<std::thread> threads_;
  std::thread aborting_;
};

TensorParallel::TensorParallel(const Backend& backend, int world, const DeviceOptions& options)
    : backend_(backend), runners_(size_t(world)) {
  const bool host = backend.host;
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
    threads_ = std::make_unique<Threads>(world, [this](const char* cause) {
      if (!connected_) return;  // nobody waits for another yet
      for (const auto& runner : runners_) backend_.abort_group(runner->device().context(), cause);
    });
    threads_->run(open, 0);
  }
  std::vector<DeviceContext*> contexts;
  for (const auto& runner : runners_) contexts.push_back(&runner->device().context());
  backend.connect(contexts);
  connected_ = true;
}

TensorParallel::~TensorParallel() {
  const std::string cause = threads_ ? threads_->cause() : "";
  if (cause.empty()) return;
  std::promise<void> gone;
  std::future<void> end = gone.get_future();
  std::thread ending;
  try {
    ending = std::thread([&] {
      threads_.reset();
      runners_.clear();
      gone.set_value();
    });
  } catch (const std::system_error&) {  // no thread is to be had: nobody watches the end
    return;
  }
  if (end.wait_for(kEndLimit) == std::future_status::timeout) {
    // Who would have said the cause is not reached any more.
    std::fputs(fmt::format(
                   "spinfer: {}; a rank hangs and can be neither joined nor freed: the process ends\n", cause)
                   .c_str(),
               stderr);
    std::fflush(stdout);
    std::_Exit(1);
  }
  ending.join();
}

void TensorParallel::on_all(std::function<void(Runner&)> body, double watchdog_seconds) {
  if (!threads_) return body(*runners_[0]);
  threads_->run([this, body = std::move(body)](int rank) { body(*runners_[size_t(rank)]); },
                watchdog_seconds);
}

}  // namespace spinfer
