// The requests for text that the engine works on: their choices go in, what the engine reports goes to the
// request it belongs to, and what nobody wants any more is cancelled. Lives on the I/O thread.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>

#include "engine/server/engine_thread.h"
#include "engine/server/generation.h"
#include "engine/server/http_server.h"
#include "engine/server/serve_metrics.h"

namespace spinfer {

class LiveGenerations {
 public:
  /// Both must outlive the last call, and `engine` the last client.
  LiveGenerations(EngineThread& engine, ServeMetrics& metrics) : engine_(engine), metrics_(metrics) {}
  LiveGenerations(const LiveGenerations&) = delete;
  LiveGenerations& operator=(const LiveGenerations&) = delete;

  /// Choices in the engine or on the way there; of clients that have gone, too, until the engine says so.
  size_t choices() const { return places_.size(); }
  /// Draws the tickets and hands the choices to the engine. The client must still be there.
  void start(PreparedRequest prepared, const std::shared_ptr<HttpExchange>& exchange,
             Generation::RespondLater respond_later);
  void take_report(const StepReport& report);
  /// For when the engine reports nothing any more.
  void end_all(int status, const std::string& cause);

 private:
  struct Place {
    std::shared_ptr<Generation> generation;
    size_t index;
  };

  EngineThread& engine_;
  ServeMetrics& metrics_;
  std::unordered_map<Ticket, Place> places_;
  Ticket last_ticket_ = 0;
};

}  // namespace spinfer
