// The bodies of OpenAI's API, parsed and checked. Untrusted input: everything is bounded, and what is not
// supported is refused by name instead of ignored.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/request.h"
#include "kernels/check.h"
#include "tokenizer/chat_template.h"

namespace spinfer {

inline constexpr int kMaxChoices = 128;       ///< prompts × n of one request
inline constexpr int kMaxTopLogprobs = 20;    ///< alternatives listed per token
inline constexpr size_t kMaxMessages = 4096;  ///< of a chat

/// An error of a request, with what OpenAI's error object holds.
class RequestError : public Error {
 public:
  RequestError(int status, const std::string& message, std::string param = {}, std::string code = {})
      : Error(message), status(status), message(message), param(std::move(param)), code(std::move(code)) {}
  int status;           ///< HTTP
  std::string message;  ///< whole, where what() ends at a NUL that the client has sent
  std::string param;    ///< the field at fault; may be empty
  std::string code;     ///< machine-readable; may be empty
};

using PromptInput = std::variant<std::string, std::vector<int32_t>>;

struct GenerationRequest {
  bool chat = false;
  std::string model;                  ///< empty where the request names none
  std::vector<PromptInput> prompts;   ///< completions: at least one
  std::vector<ChatMessage> messages;  ///< chat: at least one
  std::optional<int> max_tokens;      ///< params.max_tokens is not set
  SamplingParams params;              ///< not checked against the engine's ranges yet
  int n = 1;                          ///< choices per prompt
  bool stream = false;
  bool include_usage = false;  ///< in a stream: end with a chunk of usage
};

struct TokenizeRequest {
  std::string model, text;
  bool add_special_tokens = true;  ///< BOS
};

struct DetokenizeRequest {
  std::string model;
  std::vector<int32_t> tokens;
};

// Each throws `RequestError` with status 400.
GenerationRequest parse_completion_request(std::string_view body);
GenerationRequest parse_chat_request(std::string_view body);
TokenizeRequest parse_tokenize_request(std::string_view body);
DetokenizeRequest parse_detokenize_request(std::string_view body);

}  // namespace spinfer
