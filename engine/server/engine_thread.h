// The engine and the thread that alone touches it. Others hand in requests and cancellations, and get what
// each step changed.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/engine.h"

namespace spinfer {

using Ticket = uint64_t;  ///< names a submitted request before the engine knows it; chosen by the submitter

struct Submission {
  Ticket ticket = 0;
  std::vector<int32_t> prompt;
  SamplingParams params;
};

struct TicketUpdate {
  Ticket ticket = 0;
  bool refused = false;  ///< the engine did not take it: `update.error` says why, nothing more follows
  RequestUpdate update;
};

/// All that one step changed, or one refusal.
struct StepReport {
  std::chrono::steady_clock::time_point when;
  StepStats step;
  std::vector<TicketUpdate> updates;
};

enum class EngineState { loading, ready, failed };

struct EngineStatus {
  EngineState state = EngineState::loading;
  std::string failure;  ///< with `failed`
  EngineStats stats;
  MemoryReport memory;
};

class EngineThread {
 public:
  /// Called on the engine thread; must not take long and must not throw.
  using Deliver = std::function<void(StepReport report)>;

  /// Starts the thread, which loads the model first. `on_ready` is called there with the loaded engine,
  /// whose const members that never change (config, tokenizer, max_model_len) may be used by all from then
  /// on.
  EngineThread(EngineOptions options, std::function<void(const Engine&)> on_ready, Deliver deliver);
  ~EngineThread();
  EngineThread(const EngineThread&) = delete;
  EngineThread& operator=(const EngineThread&) = delete;

  /// All or none: where the engine refuses one, each of `submissions` is reported as refused. From any
  /// thread.
  void submit(std::vector<Submission> submissions);
  /// Takes effect before the next step. Unknown tickets are ignored. From any thread.
  void cancel(std::vector<Ticket> tickets);
  /// Ends the thread after the current step and frees the engine. Requests still in it are not reported. A
  /// load in progress is waited for.
  void stop();

  EngineStatus status() const;
  /// What loading threw, to be thrown again; null otherwise.
  std::exception_ptr load_error() const;

 private:
  struct Commands {
    std::vector<std::vector<Submission>> submissions;
    std::vector<Ticket> cancellations;
  };
  class Loop;

  void run(const EngineOptions& options, const std::function<void(const Engine&)>& on_ready);
  bool load(const EngineOptions& options, const std::function<void(const Engine&)>& on_ready);
  void serve();
  bool wait_for_commands(bool busy, Commands& commands);
  void set_status(const EngineStatus& status);
  void fail_for_good(const std::string& cause);

  Deliver deliver_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  Commands commands_;               // guarded by mutex_
  bool stopping_ = false;           // guarded by mutex_
  EngineStatus status_;             // guarded by mutex_
  std::exception_ptr load_error_;   // guarded by mutex_
  std::unique_ptr<Engine> engine_;  // the engine thread's; freed by stop
  std::thread thread_;
};

}  // namespace spinfer
