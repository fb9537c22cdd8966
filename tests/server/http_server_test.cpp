#include "engine/server/http_server.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <functional>
#include <future>
#include <list>
#include <thread>

namespace spinfer {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

/// A server whose every answer has `answer_bytes`.
class RunningServer {
 public:
  RunningServer(HttpOptions options, size_t answer_bytes)
      : server_(
            [&] {
              options.port = 0;
              return options;
            }(),
            [answer_bytes](const HttpRequest&, const std::shared_ptr<HttpExchange>& exchange) {
              exchange->respond({.body = std::string(answer_bytes, 'a')});
            },
            [](int, const std::string& message) { return message; }),
        thread_([this] { server_.run([] {}); }) {}
  ~RunningServer() {
    server_.post([this] { server_.stop(); });
    thread_.join();
  }

  int port() const { return server_.port(); }
  HttpCounts counts() {
    std::promise<HttpCounts> counts;
    server_.post([&] { counts.set_value(server_.counts()); });
    return counts.get_future().get();
  }

 private:
  HttpServer server_;
  std::thread thread_;
};

class Client {
 public:
  /// Connects and asks.
  explicit Client(int port, bool small_buffer = false) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    const int small = 4096;
    if (small_buffer) setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(uint16_t(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    constexpr std::string_view kRequest = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    EXPECT_EQ(::send(socket_, kRequest.data(), kRequest.size(), MSG_NOSIGNAL), ssize_t(kRequest.size()));
  }
  ~Client() { close(socket_); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  /// The next up to `bytes`; empty at the end of the connection.
  std::string read(size_t bytes) {
    std::string text(bytes, '\0');
    const ssize_t got = recv(socket_, text.data(), text.size(), 0);
    text.resize(size_t(std::max<ssize_t>(got, 0)));
    return text;
  }
  /// Bytes of the answer's body, read in pieces; `at` is told how many there are after each.
  size_t read_answer(size_t expected, const std::function<void(size_t)>& at = {}) {
    std::string head;
    while (head.find("\r\n\r\n") == std::string::npos) {
      const std::string piece = read(64 << 10);
      if (piece.empty()) return 0;
      head += piece;
    }
    size_t total = head.size() - head.find("\r\n\r\n") - 4;
    while (total < expected) {
      const size_t got = read(64 << 10).size();
      if (got == 0) break;
      total += got;
      if (at) at(total);
    }
    return total;
  }

 private:
  int socket_;
};

/// What `given_up` comes to, at the latest after some seconds.
int64_t given_up_at_least(RunningServer& server, int64_t wanted) {
  int64_t count = 0;
  for (int i = 0; i < 1000 && (count = server.counts().given_up) < wanted; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  return count;
}

TEST(HttpServer, AnswersThatNobodyReadsAreBounded) {
  constexpr size_t kAnswer = 16 * kMiB, kTotal = 64 * kMiB;
  RunningServer server({.max_unsent_total_bytes = kTotal}, kAnswer);
  std::list<Client> sleepers;
  for (int i = 0; i < 6; ++i) sleepers.emplace_back(server.port(), true);
  EXPECT_GE(given_up_at_least(server, 1), 1);
  // One who reads gets all, while others come and sleep: at each MiB from the fourth on another.
  Client reader(server.port(), true);
  size_t next = 4 * kMiB;
  const auto at = [&](size_t bytes) {
    if (bytes < next || next >= 14 * kMiB) return;
    sleepers.emplace_back(server.port(), true);
    next += kMiB;
  };
  EXPECT_EQ(reader.read_answer(kAnswer, at), kAnswer);
  // Of the 16 who sleep about as many are left as fit.
  const int64_t given_up = given_up_at_least(server, 16 - 4);
  EXPECT_GE(given_up, 16 - 4);
  EXPECT_LE(given_up, 16 - 3);
}

TEST(HttpServer, AnAnswerTooLargeIsAnError) {
  RunningServer server({.max_answer_bytes = 1000}, 1001);
  const std::string text = Client(server.port()).read(10000);
  EXPECT_TRUE(text.starts_with("HTTP/1.1 500 ")) << text;
  EXPECT_NE(text.find("1001 bytes, at most 1000"), std::string::npos) << text;
}

TEST(HttpServer, ConnectionsDoNotKeepTheMemoryOfTheirAnswers) {
  constexpr size_t kAnswer = 16 * kMiB;
  constexpr int kClients = 30;
  const auto resident = [] {
    size_t size = 0, pages = 0;
    std::ifstream("/proc/self/statm") >> size >> pages;
    return pages * size_t(sysconf(_SC_PAGESIZE));
  };
  RunningServer server({}, kAnswer);
  const size_t before = resident();
  std::list<Client> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back(server.port());
    EXPECT_EQ(clients.back().read_answer(kAnswer), kAnswer);
  }
  EXPECT_EQ(server.counts().connections, kClients);
  EXPECT_LT(resident(), before + kClients * kAnswer * 3 / 4);
}

}  // namespace
}  // namespace spinfer
