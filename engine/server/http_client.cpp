#include "engine/server/http_client.h"

#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <memory>

#include "kernels/check.h"

namespace spinfer {
namespace {

constexpr size_t kMaxHeadBytes = 64 << 10;

class Socket {
 public:
  Socket(const HttpUrl& url, double timeout_seconds) : name_(fmt::format("{}:{}", url.host, url.port)) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    const int failed = getaddrinfo(url.host.c_str(), url.port.c_str(), &hints, &found);
    check(failed == 0, "{}: {}", name_, gai_strerror(failed));
    const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses(found, freeaddrinfo);
    for (const addrinfo* address = found; address && fd_ < 0; address = address->ai_next)
      try_address(*address, timeout_seconds);
    check_system(fd_ >= 0, "{}: cannot connect", name_);
  }
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  void send_all(std::string_view data) {
    while (!data.empty()) {
      const ssize_t sent = send(fd_, data.data(), data.size(), MSG_NOSIGNAL);
      check_system(sent > 0, "{}: sending failed", name_);
      data.remove_prefix(size_t(sent));
    }
  }
  /// Appends what has come; false at the end of the connection.
  bool receive(std::string& data) {
    char buffer[16 << 10];
    const ssize_t count = recv(fd_, buffer, sizeof(buffer), 0);
    check_system(count >= 0, "{}: receiving failed", name_);
    data.append(buffer, size_t(count));
    return count > 0;
  }
  const std::string& name() const { return name_; }

 private:
  void try_address(const addrinfo& address, double timeout_seconds) {
    const int fd = socket(address.ai_family, address.ai_socktype, address.ai_protocol);
    if (fd < 0) return;
    const timeval timeout{.tv_sec = time_t(timeout_seconds), .tv_usec = 0};
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (connect(fd, address.ai_addr, address.ai_addrlen) == 0) {
      fd_ = fd;
      return;
    }
    const int reason = errno;
    close(fd);
    errno = reason;
  }

  std::string name_;
  int fd_ = -1;
};

struct Head {
  int status = 0;
  bool chunked = false;
  int64_t length = -1;  ///< -1: until the connection ends
};

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = c >= 'A' && c <= 'Z' ? char(c + 32) : c;
  return out;
}

Head parse_head(std::string_view text, const std::string& name) {
  Head head;
  const auto number = [&](std::string_view digits, auto& value) {
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    check(error == std::errc() && end == digits.data() + digits.size() && value >= 0,
          "{}: the answer is no HTTP", name);
  };
  check(text.starts_with("HTTP/1.") && text.size() > 12, "{}: the answer is no HTTP", name);
  number(text.substr(9, 3), head.status);
  for (size_t begin = text.find("\r\n") + 2; begin < text.size();) {
    const size_t end = std::min(text.find("\r\n", begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    begin = end + 2;
    const size_t colon = std::min(line.find(':'), line.size());
    const std::string key = lower(line.substr(0, colon));
    std::string_view value = line.substr(std::min(line.find_first_not_of(' ', colon + 1), line.size()));
    if (key == "content-length") number(value, head.length);
    if (key == "transfer-encoding") head.chunked = lower(value) == "chunked";
  }
  return head;
}

/// Undoes chunks, wherever the pieces are cut.
class Chunks {
 public:
  explicit Chunks(const std::function<void(std::string_view)>& on_body) : on_body_(on_body) {}

  /// Takes `data` as far as it can; true when the last chunk has come.
  bool take(std::string& data, const std::string& name) {
    for (;;) {
      if (left_ > 0) {
        const size_t count = size_t(std::min<uint64_t>(left_, data.size()));
        if (count == 0) return false;
        on_body_(std::string_view(data).substr(0, count));
        data.erase(0, count);
        left_ -= count;
        in_chunk_ = true;
        continue;
      }
      const size_t begin = in_chunk_ ? 2 : 0;  // the line end after a chunk
      const size_t end = data.find("\r\n", begin);
      if (end == std::string::npos) {
        check(data.size() < 1024, "{}: the answer has a broken chunk", name);
        return false;
      }
      const auto [stop, error] = std::from_chars(data.data() + begin, data.data() + end, left_, 16);
      check(error == std::errc() && stop > data.data() + begin, "{}: the answer has a broken chunk", name);
      data.erase(0, end + 2);
      in_chunk_ = false;
      if (left_ == 0) return true;
    }
  }

 private:
  const std::function<void(std::string_view)>& on_body_;
  uint64_t left_ = 0;
  bool in_chunk_ = false;
};

}  // namespace

HttpUrl parse_http_url(const std::string& text) {
  constexpr std::string_view kScheme = "http://";
  if (text.starts_with("https://"))
    throw UsageError(fmt::format("{}: https is not supported, only http", text));
  if (!text.starts_with(kScheme))
    throw UsageError(fmt::format("'{}' is no URL like http://127.0.0.1:8080", text));
  std::string_view rest = std::string_view(text).substr(kScheme.size());
  HttpUrl url;
  const size_t slash = std::min(rest.find('/'), rest.size());
  url.path = rest.substr(slash);
  while (url.path.ends_with('/')) url.path.pop_back();
  if (url.path == "/v1") url.path.clear();  // how OpenAI's clients write it
  rest = rest.substr(0, slash);
  const size_t bracket = rest.starts_with('[') ? rest.find(']') : std::string_view::npos;
  const size_t colon = rest.find(':', bracket == std::string_view::npos ? 0 : bracket);
  url.host = bracket == std::string_view::npos ? rest.substr(0, colon) : rest.substr(1, bracket - 1);
  url.port = colon == std::string_view::npos ? "80" : std::string(rest.substr(colon + 1));
  const bool digits = !url.port.empty() && url.port.size() <= 5 &&
                      std::ranges::all_of(url.port, [](char c) { return c >= '0' && c <= '9'; });
  if (url.host.empty() || !digits)
    throw UsageError(fmt::format("'{}' is no URL like http://127.0.0.1:8080", text));
  return url;
}

int http_call(const HttpUrl& url, const HttpCall& call,
              const std::function<void(std::string_view)>& on_body) {
  Socket socket(url, call.timeout_seconds);
  const std::string key =
      call.api_key.empty() ? "" : fmt::format("Authorization: Bearer {}\r\n", call.api_key);
  socket.send_all(
      fmt::format("{} {}{} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: "
                  "application/json\r\n{}Content-Length: {}\r\n\r\n{}",
                  call.method, url.path, call.path, socket.name(), key, call.body.size(), call.body));
  std::string data;
  size_t head_end;
  while ((head_end = data.find("\r\n\r\n")) == std::string::npos) {
    check(data.size() < kMaxHeadBytes && socket.receive(data), "{}: the connection ended without an answer",
          socket.name());
  }
  const Head head = parse_head(std::string_view(data).substr(0, head_end), socket.name());
  data.erase(0, head_end + 4);
  Chunks chunks(on_body);
  int64_t left = head.length;
  for (;;) {
    if (head.chunked) {
      if (chunks.take(data, socket.name())) return head.status;
    } else {
      on_body(data);
      left -= int64_t(data.size());
      data.clear();
      if (head.length >= 0 && left <= 0) return head.status;
    }
    if (!socket.receive(data)) break;
  }
  check(!head.chunked && head.length < 0, "{}: the answer broke off", socket.name());
  return head.status;
}

}  // namespace spinfer
