// What /metrics shows, in Prometheus' text format.
#pragma once

#include <memory>
#include <string>

#include "engine/request.h"
#include "engine/server/engine_thread.h"
#include "engine/server/generation.h"
#include "engine/server/http_server.h"

namespace spinfer {

class ServeMetrics {
 public:
  ServeMetrics();
  ~ServeMetrics();
  ServeMetrics(const ServeMetrics&) = delete;
  ServeMetrics& operator=(const ServeMetrics&) = delete;

  // From the I/O thread only.
  void count_end(FinishReason reason, const ChoiceTimes& times);
  void count_step(const StepStats& step);
  std::string text(const EngineStatus& engine, const HttpCounts& http) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace spinfer
