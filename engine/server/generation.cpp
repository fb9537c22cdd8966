#include "engine/server/generation.h"

#include <algorithm>
#include <utility>

#include "tokenizer/utf8.h"

namespace spinfer {
namespace {

/// Answers with more log-probabilities take too long for the I/O thread.
constexpr size_t kMostLogprobsAtOnce = 2048;

size_t count_logprobs(const std::vector<Choice>& choices) {
  size_t count = 0;
  for (const Choice& choice : choices)
    for (const TokenLogprob& token : choice.logprobs) count += 1 + token.top.size();
  return count;
}

}  // namespace

Generation::Generation(PreparedRequest request, std::shared_ptr<HttpExchange> exchange,
                       RespondLater respond_later)
    : request_(std::move(request)), exchange_(std::move(exchange)), respond_later_(std::move(respond_later)) {
  const size_t count = request_.submissions.size();
  choices_.resize(count);
  held_.resize(count);
  text_offsets_.resize(count);
  times_.resize(count);
  cached_.resize(count);
  opened_.resize(count);
  open_choices_ = count;
  usage_.prompt_tokens = request_.prompt_tokens;
}

void Generation::update(size_t index, const TicketUpdate& ticket_update,
                        std::chrono::steady_clock::time_point when, bool engine_failed) {
  const RequestUpdate& update = ticket_update.update;
  if (ended(index)) return;
  const double seconds = std::chrono::duration<double>(when - request_.arrived).count();
  Choice& choice = choices_[index];
  ChoiceTimes& times = times_[index];
  const bool ends = update.finish != FinishReason::none;
  if (times.first_token == 0 && (!update.new_ids.empty() || ends)) times.first_token = seconds;
  if (!update.new_ids.empty()) times.last_token = seconds;
  times.tokens += int64_t(update.new_ids.size());
  usage_.completion_tokens += update.sampled_tokens;
  choice.finish = update.finish;
  if (ends) {
    times.end = seconds;
    cached_[index] = update.cached_prompt_tokens;
    --open_choices_;
  }
  if (update.finish == FinishReason::error)
    return fail(ticket_update.refused && !engine_failed ? 400 : 503, update.error);
  if (update.finish == FinishReason::cancelled) return fail(503, "the server ended this request");
  if (request_.stream) {
    stream_update(index, {.text = update.new_text, .logprobs = update.logprobs, .finish = update.finish},
                  ends);
  } else {
    choice.text += update.new_text;
    choice.logprobs.insert(choice.logprobs.end(), update.logprobs.begin(), update.logprobs.end());
  }
  if (open_choices_ == 0) complete();
}

void Generation::stream_update(size_t index, Choice gained, bool ended) {
  if (answered_) return;
  if (!streaming_) {
    streaming_ = true;
    exchange_->begin_stream("text/event-stream; charset=utf-8");
  }
  if (!opened_[index]) {
    opened_[index] = true;
    exchange_->send(request_.format.opening(index));
  }
  auto& held = held_[index];
  std::move(gained.logprobs.begin(), gained.logprobs.end(), std::back_inserter(held));
  if (gained.text.empty() && !ended) return;
  gained.logprobs = std::exchange(held, {});
  exchange_->send(request_.format.chunk(index, gained, text_offsets_[index]));
}

void Generation::complete() {
  if (std::exchange(answered_, true)) return;
  usage_.cached_tokens = cached_tokens();
  if (!request_.stream) {
    const auto whole = [](const AnswerFormat& format, const std::vector<Choice>& choices,
                          const Usage& usage) -> HttpResponse {
      return {.body = format.whole(choices, usage), .headers = {{"X-Request-Id", format.id()}}};
    };
    if (count_logprobs(choices_) <= kMostLogprobsAtOnce)
      return exchange_->respond(whole(request_.format, choices_, usage_));
    const auto ended = std::make_shared<std::vector<Choice>>(choices_.size());
    for (size_t i = 0; i < choices_.size(); ++i) {
      (*ended)[i] = std::exchange(choices_[i], {.text = {}, .logprobs = {}, .finish = choices_[i].finish});
    }
    return respond_later_(
        [whole, ended, format = request_.format, usage = usage_] { return whole(format, *ended, usage); });
  }
  if (request_.include_usage) exchange_->send(request_.format.usage_chunk(usage_));
  exchange_->send(AnswerFormat::done_event());
  exchange_->end_stream();
}

/// Of the prompts, each counted once: its choices also find what the first of them has left.
int64_t Generation::cached_tokens() const {
  int64_t sum = 0;
  for (size_t first = 0; first < cached_.size(); first += size_t(request_.choices_per_prompt))
    sum += *std::min_element(cached_.begin() + std::ptrdiff_t(first),
                             cached_.begin() + std::ptrdiff_t(first) + request_.choices_per_prompt);
  return sum;
}

void Generation::fail(int status, const std::string& cause) {
  if (std::exchange(answered_, true)) return;
  const std::string body = error_json(status, cause);
  if (!streaming_) return exchange_->respond({.status = status, .body = body});
  exchange_->send(AnswerFormat::error_event(body));
  exchange_->end_stream();
}

}  // namespace spinfer
