#include "engine/server/http_server.h"

#include <spdlog/spdlog.h>
#include <sys/resource.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/thread_pool.hpp>
#include <unordered_map>

#include "engine/server/http_connection.h"
#include "kernels/check.h"

namespace spinfer {

namespace asio = boost::asio;
using asio::ip::tcp;

namespace {

constexpr int kWorkers = 2;
constexpr auto kTick = std::chrono::milliseconds(50);
constexpr auto kAcceptPause = std::chrono::milliseconds(100);

/// As many file descriptors as the system lets us have, for the connections.
void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

tcp::acceptor listen_on(asio::io_context& io, const HttpOptions& options) {
  boost::system::error_code error;
  const auto checked = [&] {
    check(!error, "cannot listen on {} port {}: {}", options.host, options.port, error.message());
  };
  tcp::resolver resolver(io);
  const auto found = resolver.resolve(options.host, std::to_string(options.port),
                                      tcp::resolver::passive | tcp::resolver::numeric_service, error);
  checked();
  const tcp::endpoint endpoint = found.begin()->endpoint();
  tcp::acceptor acceptor(io);
  acceptor.open(endpoint.protocol(), error);
  checked();
  acceptor.set_option(asio::socket_base::reuse_address(true), error);
  checked();
  acceptor.bind(endpoint, error);
  checked();
  acceptor.listen(asio::socket_base::max_listen_connections, error);
  checked();
  return acceptor;
}

}  // namespace

struct HttpServer::State {
  HttpOptions options;
  Handler handler;
  ErrorBody error_body;
  WantsBody wants_body;
  asio::io_context io{1};
  tcp::acceptor acceptor;
  asio::steady_timer tick;
  asio::steady_timer accept_pause;
  ConnectionHost host;
  std::unordered_map<Connection*, std::shared_ptr<Connection>> connections;
  asio::thread_pool workers{kWorkers};
  asio::strand<asio::thread_pool::executor_type> long_work{workers.get_executor()};

  State(const HttpOptions& given, Handler given_handler, ErrorBody given_error_body,
        WantsBody given_wants_body)
      : options(given),
        handler(std::move(given_handler)),
        error_body(std::move(given_error_body)),
        wants_body(std::move(given_wants_body)),
        acceptor(listen_on(io, options)),
        tick(io),
        accept_pause(io),
        host{.options = options,
             .handler = handler,
             .error_body = error_body,
             .wants_body = wants_body,
             .ended =
                 [this](Connection* ended) {
                   connections.erase(ended);
                   host.counts.connections = int(connections.size());
                 },
             .relieve = [this] { relieve(); }} {}

  void accept();
  void on_accepted(const boost::system::error_code& error, tcp::socket socket);
  void relieve();
  void next_tick(const std::function<void()>& on_tick);
};

void HttpServer::State::accept() {
  acceptor.async_accept([this](const boost::system::error_code& error, tcp::socket socket) {
    on_accepted(error, std::move(socket));
  });
}

void HttpServer::State::on_accepted(const boost::system::error_code& error, tcp::socket socket) {
  if (host.draining || !acceptor.is_open()) return;
  if (error) {
    // Out of descriptors, say: the connections that end will give some back.
    spdlog::warn("http: accept: {}", error.message());
    accept_pause.expires_after(kAcceptPause);
    accept_pause.async_wait([this](const boost::system::error_code& cancelled) {
      if (!cancelled) accept();
    });
    return;
  }
  ++host.counts.accepted;
  const bool full = int(connections.size()) >= options.max_connections;
  const auto connection = std::make_shared<Connection>(std::move(socket), host);
  connections.emplace(connection.get(), connection);
  host.counts.connections = int(connections.size());
  full ? connection->refuse() : connection->start();
  accept();
}

/// Who reads slowest for what it holds goes first. An answer that has just been made has had no time to be
/// slow, and small ones are soon read: those are spared.
void HttpServer::State::relieve() {
  while (host.unsent_bytes > options.max_unsent_total_bytes) {
    const auto slowest = std::ranges::max_element(
        connections, {}, [](const auto& entry) { return entry.second->seconds_to_read(); });
    const std::shared_ptr<Connection> given_up = slowest->second;
    spdlog::info("http: {} bytes wait to be read by clients, the slowest is given up", host.unsent_bytes);
    given_up->give_up();
  }
}

void HttpServer::State::next_tick(const std::function<void()>& on_tick) {
  tick.expires_after(kTick);
  tick.async_wait([this, &on_tick](const boost::system::error_code& cancelled) {
    if (cancelled) return;
    on_tick();
    next_tick(on_tick);
  });
}

HttpServer::HttpServer(const HttpOptions& options, Handler handler, ErrorBody error_body,
                       WantsBody wants_body) {
  raise_descriptor_limit();
  state_ = std::make_unique<State>(options, std::move(handler), std::move(error_body), std::move(wants_body));
}

HttpServer::~HttpServer() {
  join_workers();
  for (const auto& [key, connection] : std::exchange(state_->connections, {})) connection->close();
}

int HttpServer::port() const {
  return state_->acceptor.local_endpoint().port();
}

void HttpServer::run(const std::function<void()>& on_tick) {
  state_->accept();
  state_->next_tick(on_tick);
  state_->io.run();
}

void HttpServer::drain() {
  State& s = *state_;
  if (s.host.draining) return;
  s.host.draining = true;
  boost::system::error_code ignored;
  s.acceptor.close(ignored);
  s.accept_pause.cancel();
  const auto open = s.connections;
  for (const auto& [key, connection] : open) connection->finish_soon();
}

void HttpServer::stop() {
  const auto open = state_->connections;
  for (const auto& [key, connection] : open) connection->close();
  state_->io.stop();
}

bool HttpServer::quiet() const {
  return state_->connections.empty();
}

HttpCounts HttpServer::counts() const {
  return state_->host.counts;
}

void HttpServer::post(std::function<void()> task) {
  asio::post(state_->io, std::move(task));
}

void HttpServer::post_work(std::function<void()> task) {
  asio::post(state_->workers, std::move(task));
}

void HttpServer::post_long_work(std::function<void()> task) {
  asio::post(state_->long_work, std::move(task));
}

void HttpServer::join_workers() {
  state_->workers.stop();
  state_->workers.join();
}

}  // namespace spinfer
