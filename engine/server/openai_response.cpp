#include "engine/server/openai_response.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/server/openai_request.h"
#include "tokenizer/utf8.h"

namespace spinfer {

using nlohmann::json;

namespace {

const char* error_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    default:
      return status >= 500 ? "server_error" : "invalid_request_error";
  }
}

std::string dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string finish_text(FinishReason reason) {
  return reason == FinishReason::none ? "null" : fmt::format("\"{}\"", to_string(reason));
}

std::string usage_text(const Usage& usage) {
  return fmt::format(
      R"({{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{},"prompt_tokens_details":{{"cached_tokens":{}}}}})",
      usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens + usage.completion_tokens,
      usage.cached_tokens);
}

/// A token as the key or item of a list of texts: one that is no text by itself is written as OpenAI does.
std::string token_text(const std::string& bytes) {
  if (is_valid_utf8(bytes)) return bytes;
  std::string text = "bytes:";
  for (const char c : bytes) text += fmt::format("\\x{:02x}", uint8_t(c));
  return text;
}

/// JSON has no infinity.
float finite(float logprob) {
  return std::max(logprob, -9999.0f);
}

std::vector<int> byte_list(const std::string& bytes) {
  std::vector<int> list;
  for (const char c : bytes) list.push_back(uint8_t(c));
  return list;
}

}  // namespace

std::string json_string(std::string_view text) {
  return dump(json(text));
}

std::string error_json(int status, std::string_view message, std::string_view param, std::string_view code) {
  const auto or_null = [](std::string_view text) { return text.empty() ? "null" : json_string(text); };
  return fmt::format(R"({{"error":{{"message":{},"type":"{}","param":{},"code":{}}}}})", json_string(message),
                     error_type(status), or_null(param), or_null(code));
}

std::string error_json(const RequestError& error) {
  return error_json(error.status, error.message, error.param, error.code);
}

AnswerFormat::AnswerFormat(bool chat, std::string id, std::string model, int64_t created, bool logprobs,
                           const Tokenizer& tokenizer)
    : chat_(chat),
      id_(std::move(id)),
      head_(fmt::format(R"("id":{},"created":{},"model":{})", json_string(id_), created, json_string(model))),
      object_(chat ? "chat.completion" : "text_completion"),
      chunk_object_(chat ? "chat.completion.chunk" : "text_completion"),
      logprobs_(logprobs),
      tokenizer_(tokenizer) {}

std::string AnswerFormat::whole(const std::vector<Choice>& choices, const Usage& usage) const {
  std::string list;
  for (size_t i = 0; i < choices.size(); ++i) {
    const Choice& choice = choices[i];
    const std::string text = json_string(choice.text);
    int64_t text_offset = 0;
    list += fmt::format(
        R"({}{{"index":{},{},"logprobs":{},"finish_reason":{}}})", i > 0 ? "," : "", i,
        chat_ ? fmt::format(R"("message":{{"role":"assistant","content":{},"refusal":null}})", text)
              : fmt::format(R"("text":{})", text),
        logprobs_text(choice, text_offset), finish_text(choice.finish));
  }
  return fmt::format(R"({{{},"object":"{}","choices":[{}],"usage":{}}})", head_, object_, list,
                     usage_text(usage));
}

std::string AnswerFormat::event(std::string_view choices) const {
  return fmt::format("data: {{{},\"object\":\"{}\",\"choices\":[{}]}}\n\n", head_, chunk_object_, choices);
}

std::string AnswerFormat::opening(size_t index) const {
  if (!chat_) return {};
  return event(fmt::format(
      R"({{"index":{},"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}})",
      index));
}

std::string AnswerFormat::chunk(size_t index, const Choice& gained, int64_t& text_offset) const {
  const std::string text = json_string(gained.text);
  const bool silent = chat_ && gained.text.empty();
  return event(fmt::format(R"({{"index":{},{},"logprobs":{},"finish_reason":{}}})", index,
                           silent  ? R"("delta":{})"
                           : chat_ ? fmt::format(R"("delta":{{"content":{}}})", text)
                                   : fmt::format(R"("text":{})", text),
                           logprobs_text(gained, text_offset), finish_text(gained.finish)));
}

std::string AnswerFormat::usage_chunk(const Usage& usage) const {
  return fmt::format("data: {{{},\"object\":\"{}\",\"choices\":[],\"usage\":{}}}\n\n", head_, chunk_object_,
                     usage_text(usage));
}

std::string AnswerFormat::error_event(std::string_view error_json) {
  return fmt::format("data: {}\n\n", error_json);
}

std::string AnswerFormat::logprobs_text(const Choice& choice, int64_t& text_offset) const {
  if (!logprobs_ || choice.logprobs.empty()) return "null";
  return dump(chat_ ? chat_logprobs(choice) : completion_logprobs(choice, text_offset));
}

json AnswerFormat::completion_logprobs(const Choice& choice, int64_t& text_offset) const {
  json tokens = json::array(), numbers = json::array(), tops = json::array(), offsets = json::array();
  for (const TokenLogprob& token : choice.logprobs) {
    const std::string bytes = tokenizer_.piece_bytes(token.id);
    tokens.push_back(token_text(bytes));
    numbers.push_back(finite(token.logprob));
    offsets.push_back(text_offset);
    text_offset += count_chars(bytes);
    json top = json::object();
    for (const TopLogprob& entry : token.top)
      top[token_text(tokenizer_.piece_bytes(entry.id))] = finite(entry.logprob);
    top[token_text(bytes)] = finite(token.logprob);  // there even where it is not among the most probable
    tops.push_back(std::move(top));
  }
  return {{"tokens", tokens}, {"token_logprobs", numbers}, {"top_logprobs", tops}, {"text_offset", offsets}};
}

json AnswerFormat::chat_logprobs(const Choice& choice) const {
  const auto entry = [&](int32_t id, float logprob) {
    const std::string bytes = tokenizer_.piece_bytes(id);
    return json{{"token", bytes}, {"logprob", finite(logprob)}, {"bytes", byte_list(bytes)}};
  };
  json content = json::array();
  for (const TokenLogprob& token : choice.logprobs) {
    json top = json::array();
    for (const TopLogprob& alternative : token.top) top.push_back(entry(alternative.id, alternative.logprob));
    content.push_back(entry(token.id, token.logprob));
    content.back()["top_logprobs"] = std::move(top);
  }
  return {{"content", content}, {"refusal", nullptr}};
}

}  // namespace spinfer
