#include "engine/server/engine_thread.h"

#include <spdlog/spdlog.h>

#include <optional>
#include <unordered_map>
#include <utility>

namespace spinfer {

/// The engine with the tickets of what runs in it. Lives on the engine thread.
class EngineThread::Loop {
 public:
  Loop(Engine& engine, const Deliver& deliver) : engine_(engine), deliver_(deliver) {}

  void take(Commands commands) {
    for (auto& group : commands.submissions) submit(std::move(group));
    for (const Ticket ticket : commands.cancellations) {
      if (const auto id = ids_.find(ticket); id != ids_.end()) engine_.cancel(id->second);
    }
  }

  StepReport step() {
    StepReport report;
    for (RequestUpdate& update : engine_.step()) {
      const auto ticket = tickets_.find(update.id);
      if (ticket == tickets_.end()) continue;  // of a group that was refused
      report.updates.push_back({.ticket = ticket->second, .refused = false, .update = {}});
      const bool ended = update.finish != FinishReason::none;
      report.updates.back().update = std::move(update);
      if (!ended) continue;
      ids_.erase(ticket->second);
      tickets_.erase(ticket);
    }
    report.step = engine_.last_step();
    report.when = std::chrono::steady_clock::now();
    return report;
  }

 private:
  void submit(std::vector<Submission> group) {
    std::vector<std::pair<Ticket, RequestId>> taken;
    try {
      for (Submission& submission : group) {
        taken.emplace_back(submission.ticket,
                           engine_.add_request(std::move(submission.prompt), submission.params));
      }
    } catch (const std::exception& error) {
      for (const auto& [ticket, id] : taken) engine_.cancel(id);
      return refuse(group, error.what());
    }
    for (const auto& [ticket, id] : taken) {
      ids_[ticket] = id;
      tickets_[id] = ticket;
    }
  }

  void refuse(const std::vector<Submission>& group, const char* why) {
    StepReport report{.when = std::chrono::steady_clock::now(), .step = {}, .updates = {}};
    for (const Submission& submission : group) {
      report.updates.push_back({.ticket = submission.ticket, .refused = true, .update = {}});
      report.updates.back().update.finish = FinishReason::error;
      report.updates.back().update.error = why;
    }
    deliver_(std::move(report));
  }

  Engine& engine_;
  const Deliver& deliver_;
  std::unordered_map<Ticket, RequestId> ids_;
  std::unordered_map<RequestId, Ticket> tickets_;
};

EngineThread::EngineThread(EngineOptions options, std::function<void(const Engine&)> on_ready,
                           Deliver deliver)
    : deliver_(std::move(deliver)) {
  thread_ = std::thread(
      [this, options = std::move(options), on_ready = std::move(on_ready)] { run(options, on_ready); });
}

EngineThread::~EngineThread() {
  stop();
}

void EngineThread::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
  engine_.reset();
}

void EngineThread::submit(std::vector<Submission> submissions) {
  {
    const std::lock_guard lock(mutex_);
    commands_.submissions.push_back(std::move(submissions));
  }
  wake_.notify_one();
}

void EngineThread::cancel(std::vector<Ticket> tickets) {
  {
    const std::lock_guard lock(mutex_);
    commands_.cancellations.insert(commands_.cancellations.end(), tickets.begin(), tickets.end());
  }
  wake_.notify_one();
}

EngineStatus EngineThread::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

std::exception_ptr EngineThread::load_error() const {
  const std::lock_guard lock(mutex_);
  return load_error_;
}

void EngineThread::set_status(const EngineStatus& status) {
  const std::lock_guard lock(mutex_);
  status_ = status;
}

/// Takes what was handed in; waits for it unless `busy`. False when the thread must end.
bool EngineThread::wait_for_commands(bool busy, Commands& commands) {
  std::unique_lock lock(mutex_);
  if (!busy) {
    wake_.wait(lock, [this] {
      return stopping_ || !commands_.submissions.empty() || !commands_.cancellations.empty();
    });
  }
  commands = std::exchange(commands_, {});
  return !stopping_;
}

void EngineThread::run(const EngineOptions& options, const std::function<void(const Engine&)>& on_ready) {
  if (!load(options, on_ready)) return;
  try {
    serve();
  } catch (const std::exception& error) {
    fail_for_good(error.what());
  }
}

bool EngineThread::load(const EngineOptions& options, const std::function<void(const Engine&)>& on_ready) {
  try {
    engine_ = Engine::create(options);
    engine_->warm_up([this] {
      const std::lock_guard lock(mutex_);
      return !stopping_;
    });
    set_status(  // before anybody can ask who takes the model for ready
        {.state = EngineState::ready, .failure = {}, .stats = engine_->stats(), .memory = engine_->memory()});
    on_ready(*engine_);
    return true;
  } catch (const std::exception& error) {
    const std::lock_guard lock(mutex_);
    load_error_ = std::current_exception();
    status_ = {.state = EngineState::failed, .failure = error.what(), .stats = {}, .memory = {}};
    return false;
  }
}

void EngineThread::serve() {
  Engine& engine = *engine_;
  Loop loop(engine, deliver_);
  EngineStatus status = this->status();
  Commands commands;
  while (wait_for_commands(engine.has_work(), commands)) {
    loop.take(std::move(commands));
    std::optional<StepReport> report;
    if (engine.has_work()) report = loop.step();
    // The status first: who has a request's answer finds the engine as it was then, failed or not.
    status.stats = engine.stats();
    if (!engine.failure().empty() && status.failure.empty()) {
      spdlog::error("the engine has failed: {}", engine.failure());
      status.state = EngineState::failed;
      status.failure = engine.failure();
    }
    set_status(status);
    if (report) deliver_(std::move(*report));
    if (!engine.has_work()) engine.check_integrity();
  }
}

/// The thread ends. Requests the engine still had get no report: who sees the state ends them.
void EngineThread::fail_for_good(const std::string& cause) {
  spdlog::error("the engine has failed: {}", cause);
  EngineStatus status = this->status();
  status.state = EngineState::failed;
  status.failure = cause;
  set_status(status);
}

}  // namespace spinfer
