// The server without its sockets: a real small engine, clients that are fakes, and the test's thread as the
// I/O thread.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <functional>
#include <future>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "engine/server/live_generations.h"
#include "engine/server/served_model.h"
#include "tests/engine/engine_fixture.h"

namespace spinfer {

constexpr auto kDeadline = std::chrono::seconds(30);  ///< waited for only by tests that fail

/// Keeps this thread busy, to meet another one at another moment. (On a busy machine a yield or a sleep may
/// take as long as a whole test.)
inline void spin_for(std::chrono::microseconds time) {
  const auto end = std::chrono::steady_clock::now() + time;
  while (std::chrono::steady_clock::now() < end) continue;
}

/// The tiny model with a tokenizer whose pieces are the two bytes of "é" and the shortest words of a, b and
/// c: characters come in halves, and most text almost is most other text.
class TinyTextModel : public TinyModel {
 public:
  TinyTextModel() {
    nlohmann::json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}, {"\u00c3", 3}, {"\u00a9", 4}};
    std::deque<std::string> words = {"a", "b", "c"};
    for (int id = 5; id < kTinyVocab; ++id, words.pop_front()) {
      vocab[words.front()] = id;
      for (const char letter : {'a', 'b', 'c'}) words.push_back(words.front() + letter);
    }
    nlohmann::json special = nlohmann::json::array();
    for (const char* piece : {"<unk>", "<s>", "</s>"})
      special.push_back({{"id", vocab[piece]}, {"content", piece}, {"special", true}});
    std::ofstream(options().directory() / "tokenizer.json") << nlohmann::json{
        {"added_tokens", special},
        {"normalizer", nullptr},
        {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
        {"decoder", {{"type", "ByteLevel"}}},
        {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}}};
  }
};

/// What a request for text asks for: the body of /v1/completions, or of /v1/chat/completions if it has
/// messages.
using Body = nlohmann::json;

inline PreparedRequest prepare(const ServedModel& model, const Body& body) {
  const auto now = std::chrono::steady_clock::now();
  return body.contains("messages") ? model.prepare_chat(body.dump(), now)
                                   : model.prepare_completion(body.dump(), now);
}

inline std::shared_ptr<const ServedModel> served_model(const Engine& engine) {
  const ChatTemplate chat("{% for m in messages %}{{ m.content }}{% endfor %}", std::nullopt, std::nullopt);
  return std::make_shared<const ServedModel>(engine, std::vector<std::string>{"tiny"}, chat);
}

/// A client that keeps what it is sent, and fails the test where HttpExchange's contract is broken: calls
/// from the I/O thread only, one answer, nothing after its end.
class FakeClient : public HttpExchange {
 public:
  struct Choice {
    std::string text, finish;
    std::vector<std::string> tokens;  ///< those with log-probabilities
    std::vector<int64_t> text_offsets;
    int openings = 0;
  };
  using Watch = std::function<void(FakeClient& client)>;

  /// `watch` is called after each event of a stream, while the server still sends it.
  explicit FakeClient(Watch watch = {}) : watch_(std::move(watch)) {}

  void respond(const HttpResponse& response) override {
    if (!expect_call(State::waiting)) return;
    state_ = State::ended;
    on_gone_ = {};
    status = response.status;
    headers = response.headers;
    take(Body::parse(response.body));
  }
  void begin_stream(std::string_view content_type) override {
    if (!expect_call(State::waiting)) return;
    EXPECT_EQ(content_type, "text/event-stream; charset=utf-8");
    state_ = State::streaming;
    status = 200;
  }
  void send(std::string_view bytes) override {
    if (!expect_call(State::streaming) || bytes.empty()) return;
    ASSERT_TRUE(bytes.starts_with("data: ") && bytes.ends_with("\n\n")) << bytes;
    EXPECT_FALSE(done || !error.empty()) << "after the last event: " << bytes;
    bytes = bytes.substr(6, bytes.size() - 8);
    ++events;
    if (bytes == "[DONE]") {
      done = true;
    } else {
      take(Body::parse(bytes));
    }
    if (watch_) watch_(*this);
  }
  void end_stream() override {
    if (!expect_call(State::streaming)) return;
    EXPECT_TRUE(done || !error.empty()) << "a stream that just ends";
    state_ = State::ended;
    on_gone_ = {};
  }
  bool open() const override { return state_ != State::gone; }
  void on_gone(std::function<void()> callback) override { on_gone_ = std::move(callback); }
  void end_at_eof() override {}

  /// It closes its connection, or is given up.
  void leave() {
    if (state_ == State::ended || state_ == State::gone) return;
    state_ = State::gone;
    if (on_gone_) std::exchange(on_gone_, {})();
  }
  bool ended() const { return state_ == State::ended; }

  int status = 0;  ///< 0: nothing was sent
  std::vector<std::pair<std::string, std::string>> headers;
  std::map<int, Choice> choices;
  Body usage;
  std::string error, error_type;
  int events = 0;     ///< of a stream
  bool done = false;  ///< the stream said [DONE]

 private:
  enum class State { waiting, streaming, ended, gone };

  /// False for a client that has gone: such calls are ignored.
  bool expect_call(State expected) {
    EXPECT_EQ(std::this_thread::get_id(), io_thread_);
    if (state_ == State::gone) return false;
    EXPECT_EQ(int(state_), int(expected));
    return state_ == expected;
  }

  /// A whole answer, or an event.
  void take(const Body& message) {
    if (message.contains("error")) {
      error = message["error"]["message"];
      error_type = message["error"]["type"];
      return;
    }
    EXPECT_EQ(message["model"], "tiny");
    if (message.contains("usage")) usage = message["usage"];
    for (const Body& part : message["choices"]) {
      Choice& choice = choices[part["index"]];
      EXPECT_EQ(choice.finish, "") << "more of a choice that has ended";
      const Body& holder = part.contains("delta") ? part["delta"] : part.value("message", part);
      choice.openings += holder.contains("role");
      choice.text += holder.value("content", holder.value("text", ""));
      if (part["finish_reason"].is_string()) choice.finish = part["finish_reason"];
      if (part["logprobs"].is_object()) take_logprobs(part["logprobs"], choice);
    }
  }
  static void take_logprobs(const Body& logprobs, Choice& choice) {
    for (const Body& token : logprobs["tokens"]) choice.tokens.push_back(token);
    for (const Body& offset : logprobs["text_offset"]) choice.text_offsets.push_back(offset);
  }

  Watch watch_;
  State state_ = State::waiting;
  std::function<void()> on_gone_;
  std::thread::id io_thread_ = std::this_thread::get_id();
};

using ClientPtr = std::shared_ptr<FakeClient>;

/// What ApiServer has behind HTTP.
class Serving {
 public:
  enum class Pace {
    free,      ///< the engine runs on whether or not its reports are taken
    lockstep,  ///< the next step begins when the last one's report has been taken
  };

  explicit Serving(const EngineOptions& options, Pace pace = Pace::free)
      : lockstep_(pace == Pace::lockstep),
        engine_(
            options,
            [this](const Engine& loaded) {
              post([this, served = served_model(loaded)] { model_ = served; });
            },
            [this](StepReport report) {
              auto shared = std::make_shared<StepReport>(std::move(report));
              post([this, shared] { live_.take_report(*shared); });
            }) {
    EXPECT_TRUE(run_until([this] { return model_ != nullptr; }));
  }
  ~Serving() { stop(); }

  ClientPtr ask(const Body& body, FakeClient::Watch watch = {}) {
    auto client = std::make_shared<FakeClient>(std::move(watch));
    live_.start(prepare(*model_, body), client, [this, client](std::function<HttpResponse()> make) {
      ++made_later;
      post([client, make = std::move(make)] { client->respond(make()); });
    });
    return client;
  }

  /// Does the I/O thread's work, report by report, until `done`. False, and a failure, after the deadline.
  bool run_until(const std::function<bool()>& done) {
    const auto deadline = std::chrono::steady_clock::now() + kDeadline;
    while (!done()) {
      std::unique_lock lock(mutex_);
      if (!changed_.wait_until(lock, deadline, [this] { return !tasks_.empty(); })) {
        ADD_FAILURE() << "nothing is reported any more";
        return false;
      }
      const auto task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      lock.lock();
      ++finished_;
      changed_.notify_all();
    }
    return true;
  }
  /// Until all choices have ended and their clients, where they are still there, have their answers.
  bool run_to_end(const std::vector<ClientPtr>& clients) {
    return run_until([&] {
      return live_.choices() == 0 &&
             std::ranges::all_of(clients, [](const ClientPtr& c) { return c->ended() || !c->open(); });
    });
  }
  /// Until the engine has made `count` reports that nobody has taken.
  bool wait_for_reports(size_t count) {
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, kDeadline, [&] { return tasks_.size() >= count; })) return true;
    ADD_FAILURE() << tasks_.size() << " reports instead of " << count;
    return false;
  }
  /// Ends the engine thread. What it has reported and nobody has taken is dropped, as HttpServer does.
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      lockstep_ = false;
      changed_.notify_all();
    }
    stop_in_time(engine_);
    tasks_.clear();
  }
  /// A thread that cannot be joined leaves nothing to go on with.
  static void stop_in_time(EngineThread& engine) {
    auto stopped = std::async(std::launch::async, [&] { engine.stop(); });
    if (stopped.wait_for(kDeadline) == std::future_status::ready) return;
    std::cerr << "the engine thread does not end\n";
    std::abort();
  }

  /// Choices that have ended so: a line of /metrics.
  int ended(FinishReason reason) const {
    const std::string text = metrics_.text(engine_.status(), {});
    const std::string name =
        "spinfer_requests_ended_total{reason=\"" + std::string(to_string(reason)) + "\"} ";
    const size_t at = text.find(name);
    return at == std::string::npos ? -1 : std::stoi(text.substr(at + name.size()));
  }
  EngineStats stats() const { return engine_.status().stats; }
  LiveGenerations& live() { return live_; }
  EngineThread& engine() { return engine_; }

  int made_later = 0;  ///< answers that were too long to be made on the I/O thread

 private:
  void post(std::function<void()> task) {
    std::unique_lock lock(mutex_);
    tasks_.push_back(std::move(task));
    const int64_t number = ++posted_;
    changed_.notify_all();
    if (lockstep_ && std::this_thread::get_id() != io_thread_)
      changed_.wait_for(lock, kDeadline, [&] { return !lockstep_ || finished_ >= number; });
  }

  const std::thread::id io_thread_ = std::this_thread::get_id();
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;  // guarded by mutex_, as the next three
  int64_t posted_ = 0, finished_ = 0;
  bool lockstep_;
  ServeMetrics metrics_;
  std::shared_ptr<const ServedModel> model_;
  LiveGenerations live_{engine_, metrics_};
  EngineThread engine_;  // last: its callbacks need the rest
};

/// The answers an engine gives to whom it serves alone, choice by choice.
class Reference {
 public:
  explicit Reference(const EngineOptions& options)
      : engine_(Engine::create(options)), model_(served_model(*engine_)) {}

  std::vector<Answer> answers(const Body& body) {
    std::vector<Answer> answers;
    for (const Submission& submission : prepare(*model_, body).submissions)
      answers.push_back(run_one(*engine_, submission.prompt, submission.params));
    return answers;
  }
  const Tokenizer& tokenizer() const { return *engine_->tokenizer(); }

 private:
  std::unique_ptr<Engine> engine_;
  std::shared_ptr<const ServedModel> model_;
};

}  // namespace spinfer
