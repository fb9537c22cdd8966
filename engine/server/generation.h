// One request for text that is being answered: its choices as they grow, and what the client has been sent.
// Lives on the I/O thread.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/server/engine_thread.h"
#include "engine/server/http_server.h"
#include "engine/server/openai_response.h"

namespace spinfer {

/// A request parsed, checked and tokenized, ready for the engine.
struct PreparedRequest {
  std::vector<Submission> submissions;  ///< one per choice, tickets not drawn yet
  AnswerFormat format;
  bool stream = false;
  bool include_usage = false;
  int64_t prompt_tokens = 0;  ///< of distinct prompts
  int choices_per_prompt = 1;
  std::chrono::steady_clock::time_point arrived;
};

/// Times of one choice, for the metrics; seconds.
struct ChoiceTimes {
  double first_token = 0;  ///< since the request arrived
  double last_token = 0;   ///< since the request arrived; a step more may find the end
  double end = 0;          ///< since the request arrived
  int64_t tokens = 0;
};

class Generation {
 public:
  /// Has the answer made on another thread and given.
  using RespondLater = std::function<void(std::function<HttpResponse()> make)>;

  Generation(PreparedRequest request, std::shared_ptr<HttpExchange> exchange, RespondLater respond_later);

  /// What a step added to choice `index`. Sends it on, and the whole answer after the last choice's end.
  void update(size_t index, const TicketUpdate& update, std::chrono::steady_clock::time_point when,
              bool engine_failed);
  /// Ends it from outside: the client is told why.
  void fail(int status, const std::string& cause);
  /// The client has its whole answer, or an error: what the engine still does for it is for nothing.
  bool answered() const { return answered_; }
  bool ended(size_t index) const { return choices_[index].finish != FinishReason::none; }
  /// Of an ended choice.
  ChoiceTimes times(size_t index) const { return times_[index]; }

 private:
  void stream_update(size_t index, Choice gained, bool ended);
  void complete();
  int64_t cached_tokens() const;

  PreparedRequest request_;
  std::shared_ptr<HttpExchange> exchange_;
  RespondLater respond_later_;
  std::vector<Choice> choices_;                  // streaming: only how they ended
  std::vector<std::vector<TokenLogprob>> held_;  // streaming: log-probabilities of text that is held back
  std::vector<int64_t> text_offsets_;            // streaming: characters of the tokens listed of each choice
  std::vector<ChoiceTimes> times_;
  std::vector<int64_t> cached_;  // prompt tokens of each choice found in the prefix cache
  std::vector<bool> opened_;
  Usage usage_;
  size_t open_choices_;
  bool streaming_ = false;  // the head was sent
  bool answered_ = false;
};

}  // namespace spinfer
