// The engine's thread by itself: what is handed in from several threads, cancelled as it ends, and stopped
// in the middle.
#include "engine/server/engine_thread.h"

#include <gtest/gtest.h>

#include <atomic>

#include "kernels/check.h"
#include "tests/server/serving_fixture.h"

namespace spinfer {
namespace {

/// What has been reported, by ticket.
class Reports {
 public:
  EngineThread::Deliver deliver() {
    return [this](StepReport report) {
      const std::lock_guard lock(mutex_);
      for (TicketUpdate& update : report.updates) answers_[update.ticket].add(std::move(update.update));
      changed_.notify_all();
    };
  }
  /// The answer to `ticket` once it has ended; a failure and what there is of it after the deadline.
  Answer wait_for(Ticket ticket) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(
        changed_.wait_for(lock, kDeadline, [&] { return answers_[ticket].finish != FinishReason::none; }))
        << "ticket " << ticket << " does not end";
    return answers_[ticket];
  }
  bool has_ended(Ticket ticket) {
    const std::lock_guard lock(mutex_);
    return answers_[ticket].finish != FinishReason::none;
  }
  std::map<Ticket, Answer> all() {
    const std::lock_guard lock(mutex_);
    return answers_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<Ticket, Answer> answers_;
};

const std::vector<int32_t> kPrompt = {5, 6, 7};

SamplingParams to_length(int max_tokens) {
  return {.max_tokens = max_tokens, .seed = 3, .ignore_eos = true};
}

/// Another thread cancels each request at about the moment of its end: later where it was early, and the
/// other way round. One that nobody cancels runs beside them all the time.
TEST(EngineThread, ACancelThatRacesTheEndEndsTheRequestOnce) {
  constexpr Ticket kRounds = 600, kBeside = 1'000'000;
  constexpr int kTokens = 3, kBesideTokens = 200;
  const TinyModel model;
  const Answer beside = run_one(*Engine::create(model.options()), kPrompt, to_length(kBesideTokens));
  Reports reports;
  EngineThread engine(
      model.options(), [](const Engine&) {}, reports.deliver());
  std::atomic<Ticket> submitted = 0;
  std::atomic<int> delay = 100;  // µs
  std::thread canceller([&] {
    for (Ticket ticket = 1; ticket <= kRounds; ++ticket) {
      for (Ticket seen = submitted; seen < ticket; seen = submitted) submitted.wait(seen);
      spin_for(std::chrono::microseconds(delay));
      engine.cancel({ticket});
    }
  });
  Ticket last_beside = kBeside;
  engine.submit({{.ticket = last_beside, .prompt = kPrompt, .params = to_length(kBesideTokens)}});
  for (Ticket ticket = 1; ticket <= kRounds && !HasFailure(); ++ticket) {
    engine.submit({{.ticket = ticket, .prompt = kPrompt, .params = to_length(kTokens)}});
    submitted = ticket;
    submitted.notify_one();
    delay = reports.wait_for(ticket).finish == FinishReason::cancelled ? delay * 5 / 4 + 1 : delay * 4 / 5;
    if (!reports.has_ended(last_beside)) continue;
    engine.submit({{.ticket = ++last_beside, .prompt = kPrompt, .params = to_length(kBesideTokens)}});
  }
  submitted = kRounds;
  submitted.notify_one();
  canceller.join();
  for (Ticket ticket = kBeside; ticket <= last_beside; ++ticket)
    EXPECT_EQ(reports.wait_for(ticket).ids, beside.ids);
  int ended = 0, cancelled = 0;
  for (const auto& [ticket, answer] : reports.all()) {
    EXPECT_EQ(answer.updates_after_end, 0);
    ended += answer.finish == FinishReason::length;
    cancelled += answer.finish == FinishReason::cancelled;
    EXPECT_EQ(int(answer.ids.size()) == (ticket < kBeside ? kTokens : kBesideTokens),
              answer.finish == FinishReason::length);
  }
  EXPECT_EQ(ended + cancelled, int(kRounds + last_beside - kBeside + 1));
  EXPECT_GT(cancelled, 0);
  EXPECT_LT(cancelled, int(kRounds));
  const EngineStatus status = engine.status();
  EXPECT_EQ(status.state, EngineState::ready);
  EXPECT_EQ(status.stats.running + status.stats.waiting, 0);
  EXPECT_EQ(status.stats.kv_blocks_used, 0);
  Serving::stop_in_time(engine);
}

TEST(EngineThread, ARefusalIsOfTheWholeGroupAndOfNobodyElse) {
  const TinyModel model;
  Reports reports;
  EngineThread engine(
      model.options(), [](const Engine&) {}, reports.deliver());
  engine.submit({{.ticket = 1, .prompt = kPrompt, .params = to_length(20)}});
  engine.submit({{.ticket = 2, .prompt = kPrompt, .params = to_length(20)},
                 {.ticket = 3, .prompt = {}, .params = to_length(20)},
                 {.ticket = 4, .prompt = kPrompt, .params = to_length(20)}});
  engine.submit({{.ticket = 5, .prompt = kPrompt, .params = to_length(20)}});
  for (Ticket ticket = 1; ticket <= 5; ++ticket) {
    const bool refused = ticket >= 2 && ticket <= 4;
    const Answer answer = reports.wait_for(ticket);
    EXPECT_EQ(answer.finish, refused ? FinishReason::error : FinishReason::length);
    EXPECT_EQ(answer.error, refused ? "the prompt has no tokens" : "");
    EXPECT_EQ(answer.ids.size(), refused ? 0u : 20u);
  }
  for (const auto& [ticket, answer] : reports.all()) EXPECT_EQ(answer.updates_after_end, 0);
  EXPECT_EQ(engine.status().stats.generated_tokens, 40);
  Serving::stop_in_time(engine);
}

/// Loading, with nothing to do, with requests that nobody has taken yet, and with some running and some
/// waiting.
TEST(EngineThread, StopsWhereverItIs) {
  const TinyModel model;
  auto options = model.options();
  options.max_num_seqs = 2;
  for (int round = 0; round < 24; ++round) {
    SCOPED_TRACE(round);
    Reports reports;
    EngineThread engine(
        options, [](const Engine&) {}, reports.deliver());
    if (round % 4 != 0) {
      engine.submit({{.ticket = 1, .prompt = kPrompt, .params = to_length(1 + round)}});
      reports.wait_for(1);
    }
    if (round % 4 >= 2) {
      for (Ticket ticket = 2; ticket < 8; ++ticket)
        engine.submit({{.ticket = ticket, .prompt = kPrompt, .params = to_length(250)}});
    }
    if (round % 4 == 3) {
      engine.submit({{.ticket = 8, .prompt = {}, .params = {}}});
      reports.wait_for(8);  // so the others are in
    }
    Serving::stop_in_time(engine);
    // Too late, and harmless.
    engine.submit({{.ticket = 9, .prompt = kPrompt, .params = to_length(1)}});
    engine.cancel({1, 2, 9});
    Serving::stop_in_time(engine);
    const auto answers = reports.all();
    EXPECT_FALSE(answers.contains(9));
    for (const auto& [ticket, answer] : answers) EXPECT_EQ(answer.updates_after_end, 0);
  }
}

TEST(EngineThread, SaysWhyLoadingFailed) {
  const TinyModel model;
  const auto failure_of = [&](const EngineOptions& options,
                              const std::function<void(const Engine&)>& on_ready) {
    Reports reports;
    EngineThread engine(options, on_ready, reports.deliver());
    const auto deadline = std::chrono::steady_clock::now() + kDeadline;
    while (!engine.load_error() && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    EXPECT_EQ(engine.status().state, EngineState::failed);
    EXPECT_TRUE(engine.load_error());
    EXPECT_TRUE(reports.all().empty());
    Serving::stop_in_time(engine);
    return engine.status().failure;
  };
  auto missing = model.options();
  missing.model = model.options().directory() / "nowhere" / "config.json";
  EXPECT_NE(failure_of(missing, [](const Engine&) { ADD_FAILURE(); }).find("nowhere"), std::string::npos);
  EXPECT_EQ(failure_of(model.options(), [](const Engine&) { throw Error("no tokenizer"); }), "no tokenizer");
}

}  // namespace
}  // namespace spinfer
