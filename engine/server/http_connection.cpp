#include "engine/server/http_connection.h"

#include <fmt/format.h>
#include <netinet/tcp.h>
#include <spdlog/spdlog.h>

#include <boost/beast/core/string.hpp>
#include <sstream>

namespace spinfer {

namespace asio = boost::asio;
namespace http = boost::beast::http;

namespace {

constexpr size_t kReadBytes = 16 << 10;
/// Otherwise the kernel takes megabytes of an answer at once, read or not: memory that we do not count, and
/// the pace of the client would show late.
using NotSentLowAt = asio::detail::socket_option::integer<IPPROTO_TCP, TCP_NOTSENT_LOWAT>;
constexpr int kMostUnsentInKernel = 128 << 10;
constexpr size_t kMaxDrainedBytes = 8 << 20;
constexpr double kLingerSeconds = 2;
constexpr int kMostBlankLines = 8;
constexpr size_t kMostFraming = 8;  // wire bytes per byte of a body: a chunk of one byte takes six

std::string_view reason(int status) {
  const auto known = http::int_to_status(unsigned(status));
  return known == http::status::unknown ? "Unknown" : std::string_view(http::obsolete_reason(known));
}

std::string_view view(boost::beast::string_view text) {
  return {text.data(), text.size()};
}

struct Refusal {
  int status = 0;
  std::string message;
};

/// Heads whose body another program might see end elsewhere (RFC 9112, sections 3.2 and 6.3): what we took
/// for the next request would be part of the body to a proxy in front. Status 0: none of them.
template <class Parser>
Refusal refusal_of(const Parser& parser) {
  const auto& head = parser.get();
  const auto codings = head.count(http::field::transfer_encoding);
  const auto hosts = head.count(http::field::host);
  if (hosts > 1) return {400, fmt::format("{} Host headers; one is allowed", hosts)};
  if (hosts == 0 && head.version() >= 11) return {400, "an HTTP/1.1 request needs a Host header"};
  if (codings == 0) return {};
  if (head.version() < 11) return {400, "HTTP/1.0 has no Transfer-Encoding"};
  if (head.count(http::field::content_length) > 0)
    return {400, "Content-Length and Transfer-Encoding contradict each other"};
  if (!parser.chunked()) return {400, "the last Transfer-Encoding of a request must be chunked"};
  if (codings > 1 || !boost::beast::iequals(head[http::field::transfer_encoding], "chunked"))
    return {501, "no Transfer-Encoding but chunked is supported"};
  return {};
}

/// The path of "/health?a", and of "http://AUTHORITY/health?a" where that is this server: what the client
/// calls it in its Host header, or the address it has reached. Another's absolute form stays as it is.
std::string path_of(std::string_view target, std::string_view host, const asio::ip::tcp::endpoint& local) {
  constexpr std::string_view kScheme = "http://";
  if (boost::beast::iequals(target.substr(0, kScheme.size()), kScheme)) {
    const std::string_view rest = target.substr(kScheme.size());
    const std::string_view authority = rest.substr(0, rest.find_first_of("/?#"));
    const std::string address = (std::ostringstream() << local).str();
    if (!authority.empty() && (boost::beast::iequals(authority, host) || authority == address))
      target = rest.substr(authority.size());
    if (target.empty() || target.front() == '?' || target.front() == '#') return "/";
  }
  return std::string(target.substr(0, target.find_first_of("?#")));
}

}  // namespace

Connection::Connection(asio::ip::tcp::socket socket, ConnectionHost& host)
    : host_(host), socket_(std::move(socket)), deadline_(socket_.get_executor()) {
  ErrorCode ignored;
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  socket_.set_option(asio::socket_base::keep_alive(true), ignored);
  socket_.non_blocking(true, ignored);
  socket_.set_option(NotSentLowAt(kMostUnsentInKernel), ignored);
}

void Connection::start() {
  expire_after(host_.options.request_seconds);
  wait_for_input();
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
  host_.unsent_bytes -= std::exchange(counted_, 0);
  if (answering && gone_) std::exchange(gone_, {})();
  gone_ = {};
  host_.ended(this);
}

void Connection::give_up() {
  if (state_ == State::closed) return;
  ++host_.counts.given_up;
  close();
}

// ---- reading

void Connection::next_request() {
  state_ = State::idle;
  gone_ = {};
  parser_.reset();
  streaming_ = head_only_ = end_at_eof_ = false;
  blank_lines_ = 0;
  if (finish_soon_ || host_.draining) return close();
  if (input_.size() == 0) input_.shrink_to_fit();  // clients that only wait hold no memory
  expire_after(host_.options.idle_seconds);
  look_for_request();
}

/// Waits without a buffer: input_ may be parsed, and moved, meanwhile.
void Connection::wait_for_input() {
  if (waiting_ || input_ended_ || state_ == State::closed) return;
  waiting_ = true;
  socket_.async_wait(asio::socket_base::wait_read, [self = shared_from_this()](const ErrorCode& error) {
    self->waiting_ = false;
    error ? self->close() : self->on_readable();
  });
}

void Connection::on_readable() {
  if (state_ == State::closed) return;
  ErrorCode error;
  input_.commit(socket_.read_some(input_.prepare(kReadBytes), error));
  if (error == asio::error::would_block) return wait_for_input();
  input_ended_ = error == asio::error::eof;
  if (error && !input_ended_) return close();
  if (state_ == State::idle) return look_for_request();
  if (state_ == State::reading) return read_request();
  if (state_ == State::lingering) return drain_input();
  if (input_ended_) return on_eof_while_answering();
  if (input_.size() <= host_.options.max_pipelined_bytes) return wait_for_input();
  // In `finishing` what follows is read in its turn, after the answer.
  if (state_ == State::answering) give_up();
}

/// In `idle`: begins a request if there is one.
void Connection::look_for_request() {
  if (skip_blank_lines()) return want_more();
  state_ = State::reading;
  linger_ = true;
  head_bytes_ = body_bytes_ = 0;
  expire_after(host_.options.request_seconds);
  parser_.emplace();
  parser_->header_limit(uint32_t(host_.options.max_head_bytes));
  parser_->body_limit(host_.options.max_body_bytes);
  read_request();
}

/// True if nothing else is there. Some clients end a body with a line break that they do not count (RFC 9112,
/// section 2.2).
bool Connection::skip_blank_lines() {
  const auto text = [&] {
    return std::string_view(static_cast<const char*>(input_.data().data()), input_.size());
  };
  for (; blank_lines_ < kMostBlankLines && text().starts_with("\r\n"); ++blank_lines_) input_.consume(2);
  return text().empty() || text() == "\r";
}

/// In `reading`: parses what is there.
void Connection::read_request() {
  if (!parser_->is_header_done() && !read_head()) return;
  if (!parser_->is_done() && !read_body()) return;
  linger_ = false;
  handle();
}

/// Has the parser take of input_ what it can, and adds that to `total`.
Connection::ErrorCode Connection::feed(size_t& total) {
  ErrorCode error;
  const std::string_view text(static_cast<const char*>(input_.data().data()), input_.size());
  // Where the last chunk's line comes by itself, Beast's parser asserts that two bytes follow at once.
  const bool last_chunk_begins =
      parser_->is_header_done() && parser_->chunked() && text.size() < 5 && text.starts_with('0');
  if (text.empty() || last_chunk_begins) return error;
  const size_t taken = parser_->put(input_.data(), error);
  input_.consume(taken);
  total += taken;
  return error == http::error::need_more ? ErrorCode() : error;
}

/// True when the head is there and no reason to refuse the request.
bool Connection::read_head() {
  const ErrorCode error = feed(head_bytes_);
  const bool done = !error && parser_->is_header_done();
  // The parser's own limit is one on what it gets at once.
  const bool too_long = head_bytes_ + (done ? 0 : input_.size()) > host_.options.max_head_bytes;
  if (error || too_long) {
    refuse_request(error ? error : http::error::header_limit);
    return false;
  }
  if (done) return accept_head();
  want_more();
  return false;
}

bool Connection::accept_head() {
  const auto& head = parser_->get();
  http11_ = head.version() >= 11;
  keep_alive_ = head.keep_alive();
  head_only_ = head.method() == http::verb::head;
  if (const Refusal refusal = refusal_of(*parser_); refusal.status != 0) {
    answer_error(refusal.status, refusal.message);
    return false;
  }
  ErrorCode ignored;
  request_ = {
      .method = std::string(head.method_string()),
      .path = path_of(view(head.target()), view(head[http::field::host]), socket_.local_endpoint(ignored)),
      .authorization = std::string(head[http::field::authorization]),
      .body = {}};
  if (!parser_->is_done() && host_.wants_body && !host_.wants_body(request_)) {
    handle();
    return false;
  }
  parser_->eager(true);
  if (http11_ && boost::beast::iequals(head[http::field::expect], "100-continue") && !parser_->is_done()) {
    unsent_ += "HTTP/1.1 100 Continue\r\n\r\n";
    flush();
  }
  return state_ == State::reading;
}

/// True when the body is there.
bool Connection::read_body() {
  const auto& options = host_.options;
  if (const ErrorCode error = feed(body_bytes_)) {
    refuse_request(error);
    return false;
  }
  if (parser_->is_done()) return true;
  // What stays in input_ is the beginning of a chunk's line or of the trailer, which the parser takes whole.
  if (input_.size() > options.max_head_bytes) {
    answer_error(431, fmt::format("a chunk's size and extensions, or the trailer, have more than {} bytes",
                                  options.max_head_bytes));
    return false;
  }
  if (body_bytes_ > kMostFraming * options.max_body_bytes) {
    answer_error(413, fmt::format("the chunks of the body take more than {} bytes",
                                  kMostFraming * options.max_body_bytes));
    return false;
  }
  want_more();
  return false;
}

void Connection::want_more() {
  input_ended_ ? close() : wait_for_input();
}

/// What cannot be read as a request.
void Connection::refuse_request(const ErrorCode& error) {
  const auto& options = host_.options;
  if (error == http::error::body_limit)
    return answer_error(413, fmt::format("the body has more than {} bytes", options.max_body_bytes));
  if (error == http::error::header_limit) {
    return answer_error(
        431, fmt::format("request line and headers have more than {} bytes", options.max_head_bytes));
  }
  answer_error(400, fmt::format("not an HTTP request: {}", error.message()));
}

void Connection::handle() {
  HttpRequest request = std::move(request_);
  request.body = std::move(parser_->get().body());
  parser_.reset();
  state_ = State::answering;
  deadline_.cancel();
  ++deadline_number_;
  wait_for_input();
  try {
    host_.handler(std::move(request), shared_from_this());
  } catch (const std::exception& error) {
    answer_error(500, error.what());
  }
}

void Connection::end_at_eof() {
  if (state_ != State::answering) return;
  end_at_eof_ = true;
  if (input_ended_) on_eof_while_answering();
}

/// Requests after one that is ended here get no answer: the connection closes, so that what the engine still
/// says about the ended one cannot be taken for theirs.
void Connection::on_eof_while_answering() {
  if (state_ != State::answering || !end_at_eof_) return;
  if (streaming_) return close();
  if (gone_) std::exchange(gone_, {})();
  keep_alive_ = false;
  answer_error(400,
               "the client has ended its side of the connection, which ends a generation: keep it open until "
               "the answer has come");
}

// ---- answering

std::string Connection::head(int status, std::string_view content_type, const HttpResponse* response) {
  if (finish_soon_ || host_.draining || linger_ || (input_ended_ && input_.size() == 0)) keep_alive_ = false;
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
  if (response.body.size() > host_.options.max_answer_bytes) {
    return answer_error(500, fmt::format("the answer has {} bytes, at most {} can be sent: ask for less, or "
                                         "for a stream",
                                         response.body.size(), host_.options.max_answer_bytes));
  }
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
  if (unsent() > host_.options.max_unsent_bytes) {
    spdlog::info("http: a client reads too slowly, {} bytes are waiting for it", unsent());
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

double Connection::seconds_to_read() const {
  // What the socket's own buffer takes at once says little about the client.
  constexpr double kTakenAtOnce = 64 << 10;
  if (unsent() == 0) return -1;
  const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - unsent_since_;
  return waited.count() * double(unsent()) / (kTakenAtOnce + double(taken_));
}

/// Keeps the server's sum, and may find that this connection is the one to be given up for it.
void Connection::count_unsent() {
  if (state_ == State::closed) return;
  if (counted_ == 0) {
    unsent_since_ = std::chrono::steady_clock::now();
    taken_ = 0;
  }
  const bool grows = unsent() > counted_;
  host_.unsent_bytes += unsent() - std::exchange(counted_, unsent());
  if (grows && host_.unsent_bytes > host_.options.max_unsent_total_bytes) host_.relieve();
}

void Connection::flush() {
  count_unsent();
  if (write_pending_ || state_ == State::closed) return;
  if (written_ == writing_.size()) {
    std::string written;  // freed here: a connection does not keep the memory of its last answer
    written.swap(writing_);
    writing_.swap(unsent_);
    written_ = 0;
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
  taken_ += bytes;
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
  drain_input();
}

void Connection::drain_input() {
  drained_ += input_.size();
  input_.clear();
  drained_ > kMaxDrainedBytes ? close() : want_more();
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
