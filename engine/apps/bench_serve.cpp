// `spinfer bench serve`: loads a running server that speaks OpenAI's API.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <system_error>
#include <thread>

#include "engine/apps/command.h"
#include "engine/apps/interrupt.h"
#include "engine/apps/options.h"
#include "engine/apps/output.h"
#include "engine/apps/progress.h"
#include "engine/apps/serving_figures.h"
#include "engine/apps/workload.h"
#include "engine/server/http_client.h"
#include "kernels/check.h"
#include "kernels/ops.h"
#include "models/json_text.h"

namespace spinfer {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr int kMostThreads = 2048;
constexpr int64_t kMostTokensCounted = int64_t{1} << 40;  // of a request, by its server
constexpr int kLowestId = 3, kIds = 500;  // prompt ids every vocabulary has, without special tokens

struct BenchServeFlags {
  std::string url = "http://127.0.0.1:8080";
  std::string model;
  std::string api_key_file;
  WorkloadFlags workload;
  std::vector<std::string> rates = {"inf"};
  int max_concurrency = 256;
  std::string endpoint = "completions";
  bool ignore_eos = false;
  uint64_t seed = 0;
  bool json = false;
};

/// What all requests of a run share.
struct Target {
  HttpUrl url;
  std::string key;
  std::string model;
  int64_t max_model_len = 0;  ///< 0: the server does not say
};

std::string first_line(const std::string& path) {
  const std::string text = read_text(path);
  return text.substr(0, text.find_first_of("\r\n"));
}

Target find_target(const BenchServeFlags& flags) {
  Target target{.url = parse_http_url(flags.url), .key = {}, .model = flags.model};
  if (!flags.api_key_file.empty()) target.key = first_line(flags.api_key_file);
  std::string body;
  const int status = http_call(
      target.url, {.method = "GET", .path = "/v1/models", .api_key = target.key, .timeout_seconds = 30},
      [&](std::string_view piece) { body += piece; });
  const std::string source = flags.url + ": GET /v1/models";
  check(status == 200, "{} gave status {}: {}", source, status, body.substr(0, 200));
  const json models = parse_json(body, source);
  const json* data = JsonFields(models, source).find("data");
  check(data && data->is_array() && !data->empty(), "{}: \"data\" is {}; must be a list of models", source,
        data ? data->is_array() ? "empty" : printable_value(*data) : "missing");
  const json& first = data->front();
  const JsonFields fields(first, source + ": \"data\"[0]");
  if (target.model.empty()) target.model = fields.string("id");
  if (first.contains("max_model_len") && first["max_model_len"].is_number_integer())
    target.max_model_len = first["max_model_len"];
  return target;
}

/// Words for chats, which take no ids: about a token each.
std::string random_words(uint64_t seed, int count) {
  constexpr const char* kWords[] = {"time", "year",  "people", "way",    "day",   "man",    "thing", "woman",
                                    "life", "child", "world",  "school", "state", "family", "house", "night"};
  std::string text;
  for (int i = 0; i < count; ++i)
    text += fmt::format("{} ", kWords[size_t(sample_uniform(seed, uint32_t(i)) * 16)]);
  return text;
}

std::string request_body(const BenchServeFlags& flags, const Target& target, const WorkItem& item,
                         uint64_t number) {
  const uint64_t seed = flags.seed + number;
  json body{{"model", target.model},
            {"max_tokens", item.output_tokens},
            {"temperature", 0},
            {"stream", true},
            {"stream_options", {{"include_usage", true}}}};
  if (flags.ignore_eos) body["ignore_eos"] = true;
  if (flags.endpoint == "chat") {
    body["messages"] = {
        {{"role", "user"}, {"content", random_words(seed, std::max(1, item.input_tokens / 2))}}};
  } else {
    std::vector<int> ids;
    for (int i = 0; i < item.input_tokens; ++i)
      ids.push_back(kLowestId + int(sample_uniform(seed, uint32_t(i)) * kIds));
    body["prompt"] = ids;
  }
  return body.dump();
}

/// Reads the events of a stream and notes when text came.
class StreamReader {
 public:
  explicit StreamReader(Clock::time_point sent) : sent_(sent) {}

  void take(std::string_view piece) {
    pending_ += piece;
    for (size_t end; (end = pending_.find("\n\n")) != std::string::npos; pending_.erase(0, end + 2)) {
      if (pending_.starts_with("data: ")) event(std::string_view(pending_).substr(6, end - 6));
    }
  }

  RequestFigures finish(int status) {
    check(status == 200, "status {}: {}", status, pending_.substr(0, 300));
    check(error_.empty(), "{}", error_);
    check(done_, "the stream ended without [DONE]");
    figures_.end = last_;
    if (figures_.output_tokens == 0) figures_.output_tokens = pieces_;
    return std::move(figures_);
  }

 private:
  void event(std::string_view data) {
    if (data == "[DONE]") {
      done_ = true;
      return;
    }
    const json event = json::parse(data, nullptr, false);
    if (!event.is_object()) return;
    const JsonFields fields(event, "an event of the answer");
    if (const json* error = fields.find("error")) error_ = error->dump().substr(0, 300);
    if (const json* usage = fields.find("usage")) {
      const JsonFields counts(*usage, "\"usage\" in an event of the answer");
      figures_.input_tokens = counts.integer("prompt_tokens", 0, kMostTokensCounted, 0);
      figures_.output_tokens = counts.integer("completion_tokens", 0, kMostTokensCounted, 0);
    }
    const json* choices = fields.find("choices");
    if (!choices) return;
    check(choices->is_array(), "{}: \"choices\" is {}; must be a list", fields.source(),
          printable_value(*choices));
    if (choices->empty() || is_opening(choices->front())) return;
    const double now = std::chrono::duration<double>(Clock::now() - sent_).count();
    if (pieces_++ == 0) {
      figures_.first_token = now;
    } else {
      figures_.gaps.push_back(now - last_);
    }
    last_ = now;
  }
  /// The event of a chat that only names the role.
  static bool is_opening(const json& choice) {
    if (!choice.contains("delta") || !choice["delta"].is_object()) return false;
    const JsonFields delta(choice["delta"], "\"delta\" in an event of the answer");
    return delta.string("content", "").empty() && choice.contains("finish_reason") &&
           choice["finish_reason"].is_null();
  }

  Clock::time_point sent_;
  std::string pending_, error_;
  RequestFigures figures_;
  int64_t pieces_ = 0;
  double last_ = 0;
  bool done_ = false;
};

class LoadRun {
 public:
  LoadRun(const BenchServeFlags& flags, const Target& target, std::vector<WorkItem> items)
      : flags_(flags), target_(target), items_(std::move(items)) {}

  ServingRun run() {
    ProgressBar bar("requests", ProgressUnit::items);
    start_ = Clock::now();
    std::vector<std::thread> threads;
    start_threads(threads);
    while (finished() < items_.size()) {
      bar.update(int64_t(finished()), int64_t(items_.size()));
      stop_if_interrupted_at_once();
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    for (std::thread& thread : threads) thread.join();
    run_.seconds = seconds_;
    check(!run_.requests.empty(), "{}: no request was answered; the first error: {}", flags_.url,
          first_error_);
    return std::move(run_);
  }
  const std::string& first_error() const { return first_error_; }

 private:
  /// The threads wait for a server that may never answer: the process ends with them.
  static void stop_if_interrupted_at_once() {
    if (interrupted()) std::_Exit(interrupt_status());
  }
  void start_threads(std::vector<std::thread>& threads) {
    const size_t count = std::min({items_.size(), size_t(flags_.max_concurrency), size_t{kMostThreads}});
    try {
      for (size_t i = 0; i < count; ++i) threads.emplace_back([this] { work(); });
    } catch (const std::system_error& error) {
      {
        const std::lock_guard lock(mutex_);
        next_ = items_.size();
      }
      for (std::thread& thread : threads) thread.join();
      fail("--max-concurrency {}: only {} threads can be started: {}", flags_.max_concurrency, threads.size(),
           error.what());
    }
  }
  size_t finished() {
    const std::lock_guard lock(mutex_);
    return run_.requests.size() + size_t(run_.failed);
  }

  void work() {
    for (;;) {
      size_t index;
      {
        const std::lock_guard lock(mutex_);
        if (next_ == items_.size()) return;
        index = next_++;
      }
      wait_until(items_[index].arrival);
      ask(index);
    }
  }

  double elapsed() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  /// Hour by hour: a low rate or a trace may ask for more seconds than the clock can count to.
  void wait_until(double arrival) const {
    constexpr double kLongestSleep = 3600;
    for (double left; (left = arrival - elapsed()) > 0;) {
      std::this_thread::sleep_until(Clock::now() +
                                    std::chrono::duration_cast<Clock::duration>(
                                        std::chrono::duration<double>(std::min(left, kLongestSleep))));
    }
  }

  void ask(size_t index) {
    const HttpCall call{.method = "POST",
                        .path = flags_.endpoint == "chat" ? "/v1/chat/completions" : "/v1/completions",
                        .body = request_body(flags_, target_, items_[index], index),
                        .api_key = target_.key};
    StreamReader reader(Clock::now());
    std::string error;
    RequestFigures figures;
    try {
      const int status = http_call(target_.url, call, [&](std::string_view piece) { reader.take(piece); });
      figures = reader.finish(status);
    } catch (const std::exception& failure) {
      error = failure.what();
    }
    const std::lock_guard lock(mutex_);
    seconds_ = elapsed();
    if (error.empty()) {
      run_.requests.push_back(std::move(figures));
    } else {
      if (run_.failed++ == 0) first_error_ = error;
    }
  }

  const BenchServeFlags& flags_;
  const Target& target_;
  std::vector<WorkItem> items_;
  Clock::time_point start_;
  std::mutex mutex_;
  size_t next_ = 0;  // guarded by mutex_, as all below
  ServingRun run_;
  double seconds_ = 0;
  std::string first_error_;
};

void run_bench_serve(const BenchServeFlags& flags) {
  const Target target = find_target(flags);
  for (const std::string& rate : flags.rates) {
    std::vector<WorkItem> items = make_workload(flags.workload, rate, flags.seed);
    const int64_t cut = target.max_model_len > 1 ? cut_to_model(items, target.max_model_len) : 0;
    LoadRun load(flags, target, std::move(items));
    const ServingRun run = load.run();
    json figures = serving_json(run);
    if (flags.workload.samples) figures["samples"] = samples_json(run);
    figures["requests_cut_to_model"] = cut;
    figures["request_rate"] = rate;
    figures["max_concurrency"] = flags.max_concurrency;
    figures["model"] = target.model;
    if (!load.first_error().empty()) figures["first_error"] = load.first_error();
    if (flags.json) {
      print_json(figures);
      continue;
    }
    print_out(fmt::format("{} requests/s asked: {}{}", rate, serving_table(figures), cut_line(cut)));
    if (!load.first_error().empty()) print_out(fmt::format("first error: {}\n", load.first_error()));
  }
}

}  // namespace

void add_bench_serve(CLI::App& bench) {
  auto flags = std::make_shared<BenchServeFlags>();
  CLI::App* command = bench.add_subcommand("serve", "load a running server (any with OpenAI's API)");
  command->add_option("--url", flags->url, "http://host:port")->check(not_empty())->capture_default_str();
  command->add_option("--model", flags->model, "what the server calls the model; its first one by default")
      ->check(not_empty());
  command->add_option("--api-key-file", flags->api_key_file, "file whose first line is the key")
      ->check(not_empty());
  flags->workload.add_to(*command);
  add_list(*command, "--request-rate", flags->rates,
           "requests a second, a Poisson process; inf = all at once; trace = as the trace has them; several: "
           "one run each",
           request_rate())
      ->capture_default_str();
  command->add_option("--max-concurrency", flags->max_concurrency, "requests at the same time")
      ->check(whole_number_in(1, kMostThreads))
      ->capture_default_str();
  command->add_option("--endpoint", flags->endpoint, "completions or chat")
      ->check(CLI::IsMember({"completions", "chat"}))
      ->capture_default_str();
  command->add_flag("--ignore-eos", flags->ignore_eos,
                    "ask for answers of full length (vLLM and spinfer understand it)");
  command->add_option("--seed", flags->seed, "of prompts and arrivals")->capture_default_str();
  command->add_flag("--json", flags->json, "one JSON object a line and run on stdout, nothing else");
  command->callback([flags] { run_bench_serve(*flags); });
}

}  // namespace spinfer
