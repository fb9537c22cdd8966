#include "engine/server/api_server.h"

#include <malloc.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <utility>

#include "engine/server/engine_thread.h"
#include "engine/server/generation.h"
#include "engine/server/live_generations.h"
#include "engine/server/page.h"
#include "engine/server/serve_metrics.h"
#include "engine/server/served_model.h"
#include "kernels/check.h"

namespace spinfer {
namespace {

using Clock = std::chrono::steady_clock;
using ExchangePtr = std::shared_ptr<HttpExchange>;

constexpr auto kFailureLinger = std::chrono::seconds(3);  // clients and probes see the 503 and its cause
constexpr auto kCutOffLinger = std::chrono::seconds(1);   // for the last answers to be written
constexpr size_t kMostQueuedBytes = size_t{256} << 20;    // of bodies that wait to be read and tokenized
constexpr std::string_view kModelsPath = "/v1/models";

/// 405, and the header that it needs.
struct WrongMethod : RequestError {
  WrongMethod(const HttpRequest& request, std::string allowed)
      : RequestError(405, fmt::format("{} takes {}, not {}", request.path.substr(0, 100), allowed,
                                      request.method.substr(0, 20))),
        allowed(std::move(allowed)) {}
  std::string allowed;
};

/// GET also answers HEAD.
void check_method(const HttpRequest& request, std::string_view method) {
  const bool get = method == "GET";
  if (request.method == method || (get && request.method == "HEAD")) return;
  throw WrongMethod(request, get ? "GET, HEAD" : std::string(method));
}

/// "a b" of "a%20b". A % without two hexadecimal digits stands for itself.
std::string percent_decoded(std::string_view text) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    unsigned char byte = 0;
    const char* digits = text.data() + i + 1;
    const bool escape = text[i] == '%' && text.size() - i > 2 &&
                        std::from_chars(digits, digits + 2, byte, 16).ptr == digits + 2;
    decoded += escape ? char(byte) : text[i];
    if (escape) i += 2;
  }
  return decoded;
}

}  // namespace

/// All but the callbacks of `engine` runs on the I/O thread.
struct ApiServer::State {
  using Then = std::function<void()>;
  using Prepare = PreparedRequest (ServedModel::*)(std::string_view, Clock::time_point) const;
  using Compute = std::string (ServedModel::*)(std::string_view) const;
  using PostWork = void (HttpServer::*)(std::function<void()>);

  ServeOptions options;
  HttpServer http;
  ServeMetrics metrics;
  std::shared_ptr<const ServedModel> model;  // none while loading
  LiveGenerations live{engine, metrics};
  size_t queued = 0;        // requests on the worker threads, or waiting for one
  size_t queued_bytes = 0;  // of their bodies
  std::function<void()> on_ready;
  std::optional<Clock::time_point> failed_since, drain_until, cut_off_since;
  EngineThread engine;  // last: its callbacks need the rest

  explicit State(ServeOptions given)
      : options(std::move(given)),
        http(
            options.http,
            [this](HttpRequest request, ExchangePtr exchange) { handle(std::move(request), exchange); },
            [](int status, const std::string& message) { return error_json(status, message); },
            [this](const HttpRequest& head) { return options.keys.allow(head.authorization); }),
        engine(
            options.engine, [this](const Engine& loaded) { take_model(loaded); },
            [this](StepReport report) {
              auto shared = std::make_shared<StepReport>(std::move(report));
              http.post([this, shared] { live.take_report(*shared); });
            }) {}

  ~State() {
    http.stop();          // what clients leave behind is cancelled while the engine is there
    http.join_workers();  // they use the engine's tokenizer
    engine.stop();
  }

  void take_model(const Engine& loaded);

  void handle(HttpRequest request, const ExchangePtr& exchange);
  bool handle_open_path(const HttpRequest& request, const ExchangePtr& exchange);
  void handle_api(HttpRequest request, const ExchangePtr& exchange);
  void health(const ExchangePtr& exchange);
  bool available(const ExchangePtr& exchange);
  bool finishing(const ExchangePtr& exchange);
  size_t most_answers() const { return size_t(options.engine.max_num_seqs) + size_t(options.max_waiting); }
  void work_on(HttpRequest request, const ExchangePtr& exchange, PostWork post,
               std::function<Then(std::string_view)> work);
  void respond_later(const ExchangePtr& exchange, std::function<HttpResponse()> make);
  void compute(HttpRequest request, const ExchangePtr& exchange, Compute function);
  void generate(HttpRequest request, const ExchangePtr& exchange, Prepare function);
  void start(PreparedRequest prepared, const ExchangePtr& exchange);

  void tick(const std::function<StopRequest()>& poll_stop);
  void tick_failed();
  void tick_draining();
};

// ---- engine → I/O thread

void ApiServer::State::take_model(const Engine& loaded) {
  const std::filesystem::path directory = options.engine.directory();
  auto chat = options.chat_template ? ChatTemplate::with_source(directory, *options.chat_template)
                                    : ChatTemplate::load(directory);
  if (chat && loaded.tokenizer()) chat->take_missing_tokens(*loaded.tokenizer());
  auto served = std::make_shared<const ServedModel>(loaded, options.model_names, std::move(chat));
  http.post([this, served] {
    model = served;
    if (on_ready) on_ready();
  });
}

// ---- requests

void ApiServer::State::handle(HttpRequest request, const ExchangePtr& exchange) {
  try {
    if (handle_open_path(request, exchange)) return;
    if (!options.keys.allow(request.authorization)) {
      return exchange->respond(
          {.status = 401,
           .body =
               error_json(401, "a valid API key is needed: Authorization: Bearer KEY", {}, "invalid_api_key"),
           .headers = {{"WWW-Authenticate", "Basic realm=\"spinfer\", charset=\"UTF-8\""}}});
    }
    handle_api(std::move(request), exchange);
  } catch (const WrongMethod& error) {
    exchange->respond(
        {.status = error.status, .body = error_json(error), .headers = {{"Allow", error.allowed}}});
  } catch (const RequestError& error) {
    exchange->respond({.status = error.status, .body = error_json(error)});
  }
}

/// The paths that need no key.
bool ApiServer::State::handle_open_path(const HttpRequest& request, const ExchangePtr& exchange) {
  if (request.path == "/health") {
    check_method(request, "GET");
    health(exchange);
  } else if (request.path == "/metrics") {
    check_method(request, "GET");
    exchange->respond({.content_type = "text/plain; version=0.0.4; charset=utf-8",
                       .body = metrics.text(engine.status(), http.counts())});
  } else {
    return false;
  }
  return true;
}

void ApiServer::State::handle_api(HttpRequest request, const ExchangePtr& exchange) {
  const std::string& path = request.path;
  if (path == "/") {
    check_method(request, "GET");
    exchange->respond(
        {.content_type = "text/html; charset=utf-8",
         .body = std::string(page_html()),
         .headers = {{"Content-Security-Policy",
                      "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
                      "connect-src 'self'; frame-ancestors 'none'"},
                     {"X-Content-Type-Options", "nosniff"}}});
  } else if (path == kModelsPath) {
    check_method(request, "GET");
    if (available(exchange)) exchange->respond({.body = model->list()});
  } else if (path.starts_with(kModelsPath) && path[kModelsPath.size()] == '/') {
    check_method(request, "GET");
    if (available(exchange))
      exchange->respond({.body = model->describe(percent_decoded(path.substr(kModelsPath.size() + 1)))});
  } else if (path == "/v1/completions") {
    generate(std::move(request), exchange, &ServedModel::prepare_completion);
  } else if (path == "/v1/chat/completions") {
    generate(std::move(request), exchange, &ServedModel::prepare_chat);
  } else if (path == "/tokenize") {
    compute(std::move(request), exchange, &ServedModel::tokenize);
  } else if (path == "/detokenize") {
    compute(std::move(request), exchange, &ServedModel::detokenize);
  } else {
    throw RequestError(404, fmt::format("there is no {}", path.substr(0, 200)));
  }
}

void ApiServer::State::health(const ExchangePtr& exchange) {
  if (available(exchange)) exchange->respond({.body = R"({"status":"ok"})"});
}

namespace {

HttpResponse unavailable(const std::string& why, const std::string& code) {
  return {.status = 503, .body = error_json(503, why, {}, code), .headers = {{"Retry-After", "1"}}};
}

constexpr const char* kShuttingDown = "the server is shutting down";

}  // namespace

/// False, and answered with 503, while the engine cannot take requests.
bool ApiServer::State::available(const ExchangePtr& exchange) {
  if (!finishing(exchange)) return false;
  if (!drain_until && model) return true;
  exchange->respond(drain_until ? unavailable(kShuttingDown, "shutting_down")
                                : unavailable("the model is loading", "loading"));
  return false;
}

/// The same for what came before the end was asked for: false only once nothing is finished any more.
bool ApiServer::State::finishing(const ExchangePtr& exchange) {
  const EngineStatus status = engine.status();
  if (status.state == EngineState::failed) {
    exchange->respond(unavailable("the engine has failed: " + status.failure, "engine_failed"));
    return false;
  }
  if (cut_off_since) exchange->respond(unavailable(kShuttingDown, "shutting_down"));
  return !cut_off_since;
}

namespace {

HttpResponse queue_full(const std::string& why) {
  return {.status = 429, .body = error_json(429, why, {}, "queue_full"), .headers = {{"Retry-After", "1"}}};
}

}  // namespace

/// Runs `work` on the request's body on a worker thread (by `post`), unless the client has gone by then, and
/// what it returns on the I/O thread. What it throws is answered with.
void ApiServer::State::work_on(HttpRequest request, const ExchangePtr& exchange, PostWork post,
                               std::function<Then(std::string_view)> work) {
  if (!available(exchange)) return;
  const size_t bytes = request.body.size();
  if (queued >= most_answers() || queued_bytes + bytes > kMostQueuedBytes)
    return exchange->respond(
        queue_full(fmt::format("{} requests of {} bytes wait to be read", queued, queued_bytes)));
  ++queued;
  queued_bytes += bytes;
  const auto gone = std::make_shared<std::atomic<bool>>(false);
  exchange->on_gone([gone] { *gone = true; });
  (http.*post)([this, exchange, gone, bytes, work = std::move(work), body = std::move(request.body)] {
    Then then;
    HttpResponse refusal;
    try {
      if (!*gone) then = work(body);
    } catch (const RequestError& error) {
      refusal = {.status = error.status, .body = error_json(error)};
    } catch (const std::exception& error) {
      refusal = {.status = 400, .body = error_json(400, error.what())};
    }
    if (!then) then = [exchange, refusal = std::move(refusal)] { exchange->respond(refusal); };
    http.post([this, bytes, then = std::move(then)] {
      --queued;
      queued_bytes -= bytes;
      then();
    });
  });
}

/// Answers with what `make` returns on a worker thread.
void ApiServer::State::respond_later(const ExchangePtr& exchange, std::function<HttpResponse()> make) {
  http.post_work([this, exchange, make = std::move(make)] {
    HttpResponse response;
    try {
      response = make();
    } catch (const std::exception& error) {
      response = {.status = 500, .body = error_json(500, error.what())};
    }
    http.post([exchange, response = std::move(response)] { exchange->respond(response); });
  });
}

namespace {

/// Of a request for ids or text: more may take seconds and a gigabyte.
constexpr size_t kCheapBytes = 64 << 10;

/// The allocator keeps what threads have freed.
void release_free_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace

/// Answers with what `function` of the model returns.
void ApiServer::State::compute(HttpRequest request, const ExchangePtr& exchange, Compute function) {
  check_method(request, "POST");
  const bool cheap = request.body.size() <= kCheapBytes;
  if (!cheap) exchange->end_at_eof();
  if (!exchange->open()) return;
  work_on(std::move(request), exchange, cheap ? &HttpServer::post_work : &HttpServer::post_long_work,
          [model = model, exchange, function, cheap](std::string_view body) -> Then {
            HttpResponse response{.body = ((*model).*function)(body)};
            if (!cheap) release_free_memory();
            return [exchange, response = std::move(response)] { exchange->respond(response); };
          });
}

void ApiServer::State::generate(HttpRequest request, const ExchangePtr& exchange, Prepare function) {
  check_method(request, "POST");
  exchange->end_at_eof();
  if (!exchange->open()) return;
  const auto arrived = Clock::now();
  work_on(std::move(request), exchange, &HttpServer::post_work,
          [this, model = model, exchange, function, arrived](std::string_view body) -> Then {
            auto prepared = std::make_shared<PreparedRequest>(((*model).*function)(body, arrived));
            return [this, exchange, prepared] { start(std::move(*prepared), exchange); };
          });
}

void ApiServer::State::start(PreparedRequest prepared, const ExchangePtr& exchange) {
  if (!exchange->open() || !finishing(exchange)) return;
  const size_t most = most_answers();
  if (live.choices() + prepared.submissions.size() > most) {
    return exchange->respond(
        queue_full(fmt::format("{} answers are running or waiting, at most {} may", live.choices(), most)));
  }
  live.start(std::move(prepared), exchange,
             [this, exchange](auto make) { respond_later(exchange, std::move(make)); });
}

// ---- the end

void ApiServer::State::tick(const std::function<StopRequest()>& poll_stop) {
  if (engine.status().state == EngineState::failed) return tick_failed();
  const StopRequest asked = poll_stop();
  if (asked == StopRequest::at_once) return http.stop();
  if (asked == StopRequest::drain && !drain_until) {
    const auto limit = std::chrono::milliseconds(int64_t(options.drain_seconds * 1000));
    drain_until = Clock::now() + limit;
    http.drain();
  }
  if (drain_until) tick_draining();
}

void ApiServer::State::tick_failed() {
  if (engine.load_error()) return http.stop();
  if (!failed_since) {
    failed_since = Clock::now();
    live.end_all(503, "the engine has failed: " + engine.status().failure);
  }
  if (Clock::now() - *failed_since > kFailureLinger) http.stop();
}

void ApiServer::State::tick_draining() {
  if (http.quiet()) return http.stop();
  if (Clock::now() < *drain_until) return;
  if (!cut_off_since) {
    cut_off_since = Clock::now();
    live.end_all(503, kShuttingDown);
  }
  if (Clock::now() - *cut_off_since > kCutOffLinger) http.stop();
}

ApiServer::ApiServer(ServeOptions options) : state_(std::make_unique<State>(std::move(options))) {}
ApiServer::~ApiServer() = default;

int ApiServer::port() const {
  return state_->http.port();
}

void ApiServer::run(const std::function<StopRequest()>& poll_stop, const std::function<void()>& on_ready) {
  State& s = *state_;
  s.on_ready = on_ready;
  s.http.run([&] { s.tick(poll_stop); });
  if (const std::exception_ptr error = s.engine.load_error()) std::rethrow_exception(error);
  const EngineStatus status = s.engine.status();
  if (status.state == EngineState::failed) fail("the engine has failed: {}", status.failure);
}

}  // namespace spinfer
