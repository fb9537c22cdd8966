// OpenAI's answers: whole, as the chunks of a stream, and errors.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "engine/request.h"
#include "tokenizer/tokenizer.h"

namespace spinfer {

class RequestError;

/// {"error": {"message", "type", "param", "code"}}; the type follows from the HTTP status.
std::string error_json(int status, std::string_view message, std::string_view param = {},
                       std::string_view code = {});
std::string error_json(const RequestError& error);

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t cached_tokens = 0;  ///< of the prompt, found in the prefix cache
};

/// One answer of a request.
struct Choice {
  std::string text;
  std::vector<TokenLogprob> logprobs;
  FinishReason finish = FinishReason::none;
};

/// What all chunks and answers of one request share.
class AnswerFormat {
 public:
  /// `logprobs`: they were asked for. `tokenizer` names tokens in them; it must outlive this.
  AnswerFormat(bool chat, std::string id, std::string model, int64_t created, bool logprobs,
               const Tokenizer& tokenizer);

  std::string whole(const std::vector<Choice>& choices, const Usage& usage) const;
  /// An event of a stream: the text (and log-probabilities) that choice `index` gained, and how it ended.
  /// `text_offset`: characters of the choice's tokens listed before, advanced by those of these.
  std::string chunk(size_t index, const Choice& gained, int64_t& text_offset) const;
  /// The event that opens a choice; empty for completions.
  std::string opening(size_t index) const;
  std::string usage_chunk(const Usage& usage) const;
  static std::string error_event(std::string_view error_json);
  static std::string_view done_event() { return "data: [DONE]\n\n"; }

  const std::string& id() const { return id_; }

 private:
  std::string event(std::string_view choices) const;
  std::string logprobs_text(const Choice& choice, int64_t& text_offset) const;
  nlohmann::json completion_logprobs(const Choice& choice, int64_t& text_offset) const;
  nlohmann::json chat_logprobs(const Choice& choice) const;

  bool chat_;
  std::string id_;
  std::string head_;    // "id", "created" and "model", as JSON members
  const char* object_;  // of whole answers
  const char* chunk_object_;
  bool logprobs_;
  const Tokenizer& tokenizer_;
};

/// `text` as a JSON string, with quotes; ill-formed UTF-8 becomes U+FFFD.
std::string json_string(std::string_view text);

}  // namespace spinfer
