// HTTP/1.1 for hostile clients: bounded heads, bodies, connections, buffers and waits. Knows no model.
//
// One I/O thread (the one that calls `run`) does all reading and writing and calls the handler; nothing that
// takes long may happen there. `post_work` has two worker threads for parsing and tokenizing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace spinfer {

struct HttpRequest {
  std::string method;         ///< "GET", "POST", …, as sent
  std::string path;           ///< of the target, up to '?'
  std::string authorization;  ///< header, empty where absent
  std::string body;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers = {};
};

/// One request's answer, given on the I/O thread: either `respond` once, or `begin_stream`, any number of
/// `send`, `end_stream`. Calls after the client has gone are ignored.
class HttpExchange {
 public:
  virtual ~HttpExchange() = default;
  virtual void respond(const HttpResponse& response) = 0;
  /// Status 200 and its headers; the body follows piece by piece.
  virtual void begin_stream(std::string_view content_type) = 0;
  virtual void send(std::string_view bytes) = 0;
  virtual void end_stream() = 0;
  /// False once the client has gone or was given up.
  virtual bool open() const = 0;
  /// Called once, on the I/O thread, if the client goes away (or reads so slowly that it is given up) before
  /// the answer is complete.
  virtual void on_gone(std::function<void()> callback) = 0;
  /// From now on a client that ends its side of the connection counts as gone, which is noticed at once where
  /// one that vanishes otherwise is not before it is written to. For answers that cost much.
  virtual void end_at_eof() = 0;
};

struct HttpOptions {
  std::string host = "127.0.0.1";
  int port = 8080;                              ///< 0: any free one
  size_t max_body_bytes = size_t{4} << 20;      ///< 413 above
  size_t max_head_bytes = size_t{16} << 10;     ///< request line and headers, or a trailer; 431 above
  size_t max_unsent_bytes = size_t{1} << 20;    ///< a stream's client that lags further behind is given up
  size_t max_answer_bytes = size_t{128} << 20;  ///< of one answer that is no stream; 500 above
  /// Of all answers and streams together; above, those whose readers are slowest are given up.
  size_t max_unsent_total_bytes = size_t{256} << 20;
  size_t max_pipelined_bytes = size_t{64} << 10;  ///< that may arrive while a request is being answered
  int max_connections = 2048;                     ///< 503 above
  double request_seconds = 60;  ///< for a request to arrive whole, and for a reader to take anything at all
  double idle_seconds = 75;     ///< between the requests of a connection
};

struct HttpCounts {
  int connections = 0;
  int64_t accepted = 0;
  int64_t given_up = 0;  ///< clients that were too slow, sent too much ahead, or timed out
};

class HttpServer {
 public:
  /// Called on the I/O thread for each request. Exceptions become a 500 in OpenAI's shape.
  using Handler = std::function<void(HttpRequest request, std::shared_ptr<HttpExchange> exchange)>;
  /// The body of an error the HTTP layer itself answers with.
  using ErrorBody = std::function<std::string(int status, const std::string& message)>;

  /// Whether a request, of which only the head has come, is worth reading. If not the handler gets it without
  /// its body, and the connection ends with the answer.
  using WantsBody = std::function<bool(const HttpRequest& head)>;

  /// Binds and listens. Throws `Error` naming host and port. Without `wants_body` all bodies are read.
  HttpServer(const HttpOptions& options, Handler handler, ErrorBody error_body, WantsBody wants_body = {});
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  int port() const;
  /// Serves until `stop`. `on_tick` runs every 50 ms on the I/O thread.
  void run(const std::function<void()>& on_tick);

  /// No new connections; idle ones are closed, others after their answer. I/O thread.
  void drain();
  /// `run` returns; what is still open is cut off. I/O thread.
  void stop();
  /// True when every connection has ended. I/O thread.
  bool quiet() const;
  HttpCounts counts() const;  ///< I/O thread

  /// Runs `task` on the I/O thread, from any thread. Tasks still queued when `run` returns are dropped.
  void post(std::function<void()> task);
  /// Runs `task` on a worker thread, from any thread.
  void post_work(std::function<void()> task);
  /// The same, one such task after the other: what may take seconds leaves a worker to the rest.
  void post_long_work(std::function<void()> task);
  /// Waits for the tasks that run now; none runs afterwards.
  void join_workers();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace spinfer
