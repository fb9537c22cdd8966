// A blocking HTTP/1.1 client for the benchmarks: one request a connection, the body handed on as it comes.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace spinfer {

struct HttpUrl {
  std::string host;
  std::string port;
  std::string path;  ///< before what is asked for; without a last '/'
};

/// "http://host[:port][/path]". Throws `UsageError` for anything else, https too.
HttpUrl parse_http_url(const std::string& text);

struct HttpCall {
  std::string method;
  std::string path;
  std::string body = {};
  std::string api_key = {};
  double timeout_seconds = 600;  ///< for each wait
};

/// Returns the status. `on_body` gets the body's bytes as they arrive, chunks undone. Throws `Error` naming
/// the host where there is no connection, no valid answer or the answer breaks off.
int http_call(const HttpUrl& url, const HttpCall& call, const std::function<void(std::string_view)>& on_body);

}  // namespace spinfer
