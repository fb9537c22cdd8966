// The serving program: HTTP in front, the engine behind, OpenAI's API between them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/server/api_keys.h"
#include "engine/server/http_server.h"

namespace spinfer {

struct ServeOptions {
  EngineOptions engine;
  HttpOptions http;
  ApiKeys keys;
  std::vector<std::string> model_names;      ///< the first is the one answers carry; at least one
  std::optional<std::string> chat_template;  ///< instead of the directory's
  int max_waiting = 1024;                    ///< choices beyond those that can run; 429 above
  double drain_seconds = 30;                 ///< that received requests have once the end was asked for
};

enum class StopRequest { none, drain, at_once };

class ApiServer {
 public:
  /// Binds the port and begins to load the model. Throws `Error` if the port cannot be had.
  explicit ApiServer(ServeOptions options);
  ~ApiServer();
  ApiServer(const ApiServer&) = delete;
  ApiServer& operator=(const ApiServer&) = delete;

  int port() const;
  /// Serves until `poll_stop` asks for the end: after `drain`, no new requests; those received whole before,
  /// waiting ones too, end or are cut off after drain_seconds. `on_ready` is called once the model is loaded.
  /// Throws what loading threw, or `Error` with the cause after the engine has failed (and clients had a
  /// moment to see it).
  void run(const std::function<StopRequest()>& poll_stop, const std::function<void()>& on_ready);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace spinfer
