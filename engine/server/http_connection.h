// One client connection of the HTTP server. Included by the two files that implement the server only: Beast
// compiles slowly.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <memory>
#include <optional>
#include <string>

#include "engine/server/http_server.h"

namespace spinfer {

class Connection;

/// What connections share; outlives them.
struct ConnectionHost {
  const HttpOptions& options;
  const HttpServer::Handler& handler;
  const HttpServer::ErrorBody& error_body;
  std::function<void(Connection*)> ended;
  HttpCounts counts = {};
  bool draining = false;
};

/// The life of a connection:
///
///   idle ──bytes──► reading ──whole request──► answering ──answer written──► idle
///
/// In `idle` and `answering` one read is always outstanding, so that a client that goes away is noticed at
/// once; what it reads meanwhile is the beginning of the next request. All on the I/O thread;
/// `shared_from_this` in each pending operation keeps the object alive.
class Connection : public HttpExchange, public std::enable_shared_from_this<Connection> {
 public:
  Connection(boost::asio::ip::tcp::socket socket, ConnectionHost& host);
  void start();
  /// Answers 503 and closes: the server is full.
  void refuse();
  /// Closes when idle, else after the current answer.
  void finish_soon();
  /// Cuts the connection off.
  void close();

  void respond(const HttpResponse& response) override;
  void begin_stream(std::string_view content_type) override;
  void send(std::string_view bytes) override;
  void end_stream() override;
  bool open() const override { return state_ == State::answering; }
  void on_gone(std::function<void()> callback) override { gone_ = std::move(callback); }

 private:
  enum class State { idle, reading, answering, finishing, lingering, closed };
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  using ErrorCode = boost::system::error_code;

  void next_request();
  void watch();
  void on_watched(const ErrorCode& error, size_t bytes);
  void read_head();
  void on_late_read(const ErrorCode& error);
  void on_head(const ErrorCode& error);
  void read_body();
  void on_body(const ErrorCode& error);
  void refuse_request(const ErrorCode& error);
  void answer_error(int status, const std::string& message);
  void handle();
  std::string head(int status, std::string_view content_type, const HttpResponse* response);
  void complete();
  void flush();
  void on_written(const ErrorCode& error, size_t bytes);
  void linger();
  void drain_input();
  void give_up();
  void expire_after(double seconds);
  void on_deadline();

  ConnectionHost& host_;
  boost::asio::ip::tcp::socket socket_;
  boost::asio::steady_timer deadline_;
  boost::beast::flat_buffer input_;
  std::optional<Parser> parser_;
  std::function<void()> gone_;
  std::string unsent_;   // to be written after writing_
  std::string writing_;  // being written, from written_ on
  size_t written_ = 0;
  size_t drained_ = 0;
  uint64_t deadline_number_ = 0;
  State state_ = State::idle;
  bool watching_ = false;  // a read of `watch` is outstanding
  bool reading_ = false;   // a read of a request is outstanding
  bool write_pending_ = false;
  bool keep_alive_ = false;
  bool http11_ = false;
  bool head_only_ = false;  // HEAD: the answer's body is left out
  bool streaming_ = false;
  bool linger_ = false;  // part of the request was not read: closing at once would lose the answer
  bool finish_soon_ = false;
};

}  // namespace spinfer
