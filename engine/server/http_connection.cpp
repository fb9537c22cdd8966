#include "engine/server/http_connection.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <boost/asio/write.hpp>
#include <boost/beast/http/read.hpp>

namespace spinfer {

namespace asio = boost::asio;
namespace http = boost::beast::http;

namespace {

constexpr size_t kReadBytes = 16 << 10;
constexpr size_t kMaxDrainedBytes = 8 << 20;
constexpr double kLingerSeconds = 2;

std::string_view reason(int status) {
  const auto known = http::int_to_status(unsigned(status));
  return known == http::status::unknown ? "Unknown" : std::string_view(http::obsolete_reason(known));
}

}  // namespace

Connection::Connection(asio::ip::tcp::socket socket, ConnectionHost& host)
    : host_(host), socket_(std::move(socket)), deadline_(socket_.get_executor()) {
  ErrorCode ignored;
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  socket_.set_option(asio::socket_base::keep_alive(true), ignored);
}

void Connection::start() {
  expire_after(host_.options.request_seconds);
  watch();
}

void Connection::refuse() {
  http11_ = true;
  linger_ = true;
  state_ = State::answering;
  answer_error(503, fmt::format("the server has its {} connections", host_.options.max_connections));
}

void Connection::finish_soon() {
  finish_soon_ = true;
  if (state_ == State::idle) close();
}

void Connection::close() {
  if (state_ == State::closed) return;
  const bool answering = state_ == State::answering;
  state_ = State::closed;
  ErrorCode ignored;
  deadline_.cancel();
  socket_.close(ignored);
  if (answering && gone_) std::exchange(gone_, {})();
  gone_ = {};
  host_.ended(this);
}

void Connection::give_up() {
  ++host_.counts.given_up;
  close();
}

// ---- reading

void Connection::next_request() {
  state_ = State::idle;
  gone_ = {};
  parser_.reset();
  streaming_ = head_only_ = false;
  if (finish_soon_ || host_.draining) return close();
  if (input_.size() == 0) {
    expire_after(host_.options.idle_seconds);
    return watch();
  }
  if (!watching_) return read_head();
  // The next request may be there already, whole: the read that waits for more must not hold it up.
  expire_after(host_.options.request_seconds);
  ErrorCode ignored;
  socket_.cancel(ignored);
}

void Connection::watch() {
  if (watching_ || state_ == State::closed) return;
  watching_ = true;
  socket_.async_read_some(input_.prepare(kReadBytes),
                          [self = shared_from_this()](const ErrorCode& error, size_t bytes) {
                            self->watching_ = false;
                            self->on_watched(error, bytes);
                          });
}

void Connection::on_watched(const ErrorCode& error, size_t bytes) {
  if (state_ == State::closed) return;
  if (error && error != asio::error::operation_aborted) {
    if (state_ == State::lingering || state_ == State::answering || state_ == State::idle) return close();
    keep_alive_ = false;  // finishing: a client may close its side once the whole answer is on its way
    return;
  }
  input_.commit(bytes);
  if (state_ == State::idle) return read_head();
  if (state_ == State::lingering) return drain_input();
  if (input_.size() <= host_.options.max_pipelined_bytes) return watch();
  // In `finishing` what follows is read in its turn, after the answer.
  if (state_ == State::answering) give_up();
}

void Connection::read_head() {
  state_ = State::reading;
  linger_ = true;
  expire_after(host_.options.request_seconds);
  parser_.emplace();
  parser_->header_limit(uint32_t(host_.options.max_head_bytes));
  parser_->body_limit(host_.options.max_body_bytes);
  reading_ = true;
  http::async_read_header(socket_, input_, *parser_,
                          [self = shared_from_this()](const ErrorCode& error, size_t) {
                            self->reading_ = false;
                            if (self->state_ == State::reading) return self->on_head(error);
                            self->on_late_read(error);
                          });
}

/// A read that ended after the request was refused.
void Connection::on_late_read(const ErrorCode& error) {
  if (state_ != State::lingering) return;
  error ? close() : drain_input();
}

void Connection::on_head(const ErrorCode& error) {
  if (error) return refuse_request(error);
  const auto& request = parser_->get();
  // Beast's own limit lets a head pass that arrives in one piece.
  size_t head_bytes = request.target().size();
  for (const auto& field : request) head_bytes += field.name_string().size() + field.value().size() + 4;
  if (head_bytes > host_.options.max_head_bytes) return refuse_request(http::error::header_limit);
  http11_ = request.version() >= 11;
  keep_alive_ = request.keep_alive();
  head_only_ = request.method() == http::verb::head;
  if (http11_ && request.find(http::field::host) == request.end())
    return answer_error(400, "an HTTP/1.1 request needs a Host header");
  if (boost::beast::iequals(request[http::field::expect], "100-continue") && !parser_->is_done()) {
    unsent_ += "HTTP/1.1 100 Continue\r\n\r\n";
    flush();
  }
  read_body();
}

void Connection::read_body() {
  if (parser_->is_done()) return on_body({});
  reading_ = true;
  http::async_read(socket_, input_, *parser_, [self = shared_from_this()](const ErrorCode& error, size_t) {
    self->reading_ = false;
    if (self->state_ == State::reading) return self->on_body(error);
    self->on_late_read(error);
  });
}

void Connection::on_body(const ErrorCode& error) {
  if (error) return refuse_request(error);
  linger_ = false;
  handle();
}

/// What cannot be read as a request.
void Connection::refuse_request(const ErrorCode& error) {
  if (error == http::error::end_of_stream || error == http::error::partial_message ||
      error.category() == boost::system::system_category() ||
      error.category() == asio::error::get_misc_category())
    return close();
  const auto& options = host_.options;
  if (error == http::error::body_limit)
    return answer_error(413, fmt::format("the body has more than {} bytes", options.max_body_bytes));
  if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    return answer_error(
        431, fmt::format("request line and headers have more than {} bytes", options.max_head_bytes));
  }
  answer_error(400, fmt::format("not an HTTP request: {}", error.message()));
}

void Connection::handle() {
  auto message = parser_->release();
  parser_.reset();
  HttpRequest request;
  request.method = std::string(message.method_string());
  const std::string_view target(message.target().data(), message.target().size());
  request.path = std::string(target.substr(0, target.find_first_of("?#")));
  request.authorization = std::string(message[http::field::authorization]);
  request.body = std::move(message.body());
  state_ = State::answering;
  deadline_.cancel();
  ++deadline_number_;
  watch();
  try {
    host_.handler(std::move(request), shared_from_this());
  } catch (const std::exception& error) {
    answer_error(500, error.what());
  }
}

// ---- answering

std::string Connection::head(int status, std::string_view content_type, const HttpResponse* response) {
  if (finish_soon_ || host_.draining || linger_) keep_alive_ = false;
  std::string text = fmt::format("HTTP/1.1 {} {}\r\nServer: spinfer\r\nContent-Type: {}\r\n", status,
                                 reason(status), content_type);
  if (response) {
    for (const auto& [name, value] : response->headers) text += fmt::format("{}: {}\r\n", name, value);
    text += fmt::format("Content-Length: {}\r\n", response->body.size());
  } else if (http11_) {
    text += "Transfer-Encoding: chunked\r\nCache-Control: no-cache\r\n";
  } else {
    keep_alive_ = false;  // the end of the connection is the end of the body
  }
  text += keep_alive_ ? "Connection: keep-alive\r\n\r\n" : "Connection: close\r\n\r\n";
  return text;
}

void Connection::respond(const HttpResponse& response) {
  if (state_ != State::answering) return;
  unsent_ += head(response.status, response.content_type, &response);
  if (!head_only_) unsent_ += response.body;
  complete();
}

void Connection::begin_stream(std::string_view content_type) {
  if (state_ != State::answering) return;
  streaming_ = true;
  unsent_ += head(200, content_type, nullptr);
  flush();
}

void Connection::send(std::string_view bytes) {
  if (state_ != State::answering || bytes.empty()) return;
  if (http11_) {
    unsent_ += fmt::format("{:x}\r\n", bytes.size());
    unsent_ += bytes;
    unsent_ += "\r\n";
  } else {
    unsent_ += bytes;
  }
  if (unsent_.size() + writing_.size() - written_ > host_.options.max_unsent_bytes) {
    spdlog::info("http: a client reads too slowly, {} bytes are waiting for it", unsent_.size());
    return give_up();
  }
  flush();
}

void Connection::end_stream() {
  if (state_ != State::answering) return;
  if (http11_) unsent_ += "0\r\n\r\n";
  complete();
}

void Connection::answer_error(int status, const std::string& message) {
  if (state_ == State::closed || state_ == State::finishing || state_ == State::lingering) return;
  if (streaming_) return give_up();
  state_ = State::answering;
  keep_alive_ = keep_alive_ && !linger_;
  respond({.status = status, .body = host_.error_body(status, message)});
}

/// The answer is all in unsent_.
void Connection::complete() {
  state_ = State::finishing;
  gone_ = {};
  flush();
}

void Connection::flush() {
  if (write_pending_ || state_ == State::closed) return;
  if (written_ == writing_.size()) {
    writing_.clear();
    written_ = 0;
    std::swap(writing_, unsent_);
  }
  if (writing_.empty()) {
    if (state_ == State::answering || state_ == State::reading) {
      if (state_ == State::answering) ++deadline_number_;  // nothing to wait for but the engine
      return;
    }
    if (state_ != State::finishing) return;
    return keep_alive_ ? next_request() : linger();
  }
  write_pending_ = true;
  if (state_ != State::reading) expire_after(host_.options.request_seconds);
  socket_.async_write_some(asio::buffer(writing_.data() + written_, writing_.size() - written_),
                           [self = shared_from_this()](const ErrorCode& error, size_t bytes) {
                             self->write_pending_ = false;
                             self->on_written(error, bytes);
                           });
}

void Connection::on_written(const ErrorCode& error, size_t bytes) {
  if (state_ == State::closed) return;
  if (error) return close();
  written_ += bytes;
  flush();
}

/// Closing while unread bytes are in the socket sends a reset, which can destroy the answer on its way. So:
/// say that nothing more comes, then read and forget for a moment.
void Connection::linger() {
  ErrorCode ignored;
  state_ = State::lingering;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  if (!linger_) return close();
  expire_after(kLingerSeconds);
  if (!watching_ && !reading_) drain_input();
}

void Connection::drain_input() {
  input_.clear();
  socket_.async_read_some(input_.prepare(kReadBytes),
                          [self = shared_from_this()](const ErrorCode& error, size_t bytes) {
                            if (self->state_ == State::closed) return;
                            self->drained_ += bytes;
                            if (error || self->drained_ > kMaxDrainedBytes) return self->close();
                            self->drain_input();
                          });
}

// ---- deadlines

void Connection::expire_after(double seconds) {
  const uint64_t number = ++deadline_number_;
  deadline_.expires_after(std::chrono::milliseconds(int64_t(seconds * 1000)));
  deadline_.async_wait([self = shared_from_this(), number](const ErrorCode& error) {
    if (!error && number == self->deadline_number_ && self->state_ != State::closed) self->on_deadline();
  });
}

void Connection::on_deadline() {
  if (state_ == State::idle || state_ == State::lingering) return close();
  if (state_ == State::reading) {
    ++host_.counts.given_up;
    keep_alive_ = false;
    return answer_error(408,
                        fmt::format("the request did not arrive within {} s", host_.options.request_seconds));
  }
  give_up();
}

}  // namespace spinfer
