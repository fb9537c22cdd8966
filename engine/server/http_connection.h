// One client connection of the HTTP server. Included by the two files that implement the server only: Beast
// compiles slowly.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
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
  const HttpServer::WantsBody& wants_body;
  std::function<void(Connection*)> ended;
  std::function<void()> relieve;  ///< called when unsent_bytes is above options.max_unsent_total_bytes
  HttpCounts counts = {};
  size_t unsent_bytes = 0;  ///< of all connections
  bool draining = false;
};

/// The life of a connection:
///
///   idle ──bytes──► reading ──whole request──► answering ──answer written──► idle
///
/// The socket is waited on in every state, so that a client that goes away is noticed at once; what comes
/// while a request is answered is the beginning of the next. All on the I/O thread; `shared_from_this` in
/// each pending operation keeps the object alive.
///
/// The end of what the client sends (a FIN) may mean that it has gone, or that it only has nothing more to
/// ask: until a write fails the two look the same. Requests that came whole before it are answered, in their
/// turn; but one that has called `end_at_eof` (a generation) is ended, as nobody may be there for it.
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
  /// Cuts the connection off because its client is too slow, or sends too much.
  void give_up();
  /// How long the client will take for what waits to be written, at its pace so far; negative: nothing waits.
  double seconds_to_read() const;

  void respond(const HttpResponse& response) override;
  void begin_stream(std::string_view content_type) override;
  void send(std::string_view bytes) override;
  void end_stream() override;
  bool open() const override { return state_ == State::answering; }
  void end_at_eof() override;
  void on_gone(std::function<void()> callback) override { gone_ = std::move(callback); }

 private:
  enum class State { idle, reading, answering, finishing, lingering, closed };
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  using ErrorCode = boost::system::error_code;

  void next_request();
  void wait_for_input();
  void on_readable();
  void look_for_request();
  bool skip_blank_lines();
  void read_request();
  ErrorCode feed(size_t& total);
  bool read_head();
  bool read_body();
  bool accept_head();
  void want_more();
  void refuse_request(const ErrorCode& error);
  void answer_error(int status, const std::string& message);
  void handle();
  void on_eof_while_answering();
  std::string head(int status, std::string_view content_type, const HttpResponse* response);
  void complete();
  size_t unsent() const { return unsent_.size() + writing_.size() - written_; }
  void count_unsent();
  void flush();
  void on_written(const ErrorCode& error, size_t bytes);
  void linger();
  void drain_input();
  void expire_after(double seconds);
  void on_deadline();

  ConnectionHost& host_;
  boost::asio::ip::tcp::socket socket_;
  boost::asio::steady_timer deadline_;
  boost::beast::flat_buffer input_;
  std::optional<Parser> parser_;
  HttpRequest request_;    // what the head says, while the body is read
  size_t head_bytes_ = 0;  // of the request, as they came
  size_t body_bytes_ = 0;  // the same, with chunk sizes and trailer
  int blank_lines_ = 0;    // before the request
  std::function<void()> gone_;
  std::string unsent_;   // to be written after writing_
  std::string writing_;  // being written, from written_ on
  size_t written_ = 0;
  size_t counted_ = 0;                                  // its share of host_.unsent_bytes
  size_t taken_ = 0;                                    // written since unsent_since_
  std::chrono::steady_clock::time_point unsent_since_;  // when something began to wait
  size_t drained_ = 0;
  uint64_t deadline_number_ = 0;
  State state_ = State::idle;
  bool waiting_ = false;      // `wait_for_input` is outstanding
  bool input_ended_ = false;  // the client sends nothing more
  bool end_at_eof_ = false;   // the request being answered ends with the input
  bool write_pending_ = false;
  bool keep_alive_ = false;
  bool http11_ = false;
  bool head_only_ = false;  // HEAD: the answer's body is left out
  bool streaming_ = false;
  bool linger_ = false;  // part of the request was not read: closing at once would lose the answer
  bool finish_soon_ = false;
};

}  // namespace spinfer
