#include "engine/server/live_generations.h"

#include <utility>
#include <vector>

namespace spinfer {

void LiveGenerations::start(PreparedRequest prepared, const std::shared_ptr<HttpExchange>& exchange,
                            Generation::RespondLater respond_later) {
  std::vector<Ticket> tickets;
  for (Submission& submission : prepared.submissions) tickets.push_back(submission.ticket = ++last_ticket_);
  std::vector<Submission> submissions = prepared.submissions;
  const auto generation =
      std::make_shared<Generation>(std::move(prepared), exchange, std::move(respond_later));
  for (size_t i = 0; i < tickets.size(); ++i) places_.emplace(tickets[i], Place{generation, i});
  exchange->on_gone([&engine = engine_, tickets] { engine.cancel(tickets); });
  engine_.submit(std::move(submissions));
}

void LiveGenerations::take_report(const StepReport& report) {
  metrics_.count_step(report.step);
  const bool engine_failed = engine_.status().state == EngineState::failed;
  std::vector<Ticket> unwanted;
  for (const TicketUpdate& update : report.updates) {
    const auto place = places_.find(update.ticket);
    if (place == places_.end()) continue;
    const auto generation = place->second.generation;
    const size_t index = place->second.index;
    generation->update(index, update, report.when, engine_failed);
    if (generation->ended(index)) {
      metrics_.count_end(update.update.finish, generation->times(index));
      places_.erase(place);
    } else if (generation->answered()) {
      unwanted.push_back(update.ticket);
    }
  }
  if (!unwanted.empty()) engine_.cancel(std::move(unwanted));
}

void LiveGenerations::end_all(int status, const std::string& cause) {
  std::vector<Ticket> tickets;
  for (const auto& [ticket, place] : std::exchange(places_, {})) {
    place.generation->fail(status, cause);
    tickets.push_back(ticket);
  }
  if (!tickets.empty()) engine_.cancel(std::move(tickets));
}

}  // namespace spinfer
