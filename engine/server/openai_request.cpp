#include "engine/server/openai_request.h"

#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "models/json_text.h"

namespace spinfer {
namespace {

using nlohmann::json;

constexpr int kMostTokens = 1 << 30;
constexpr size_t kMaxNameBytes = 256;

/// Fields that are understood only as far as saying that nothing special is wanted.
struct NeutralField {
  const char* name;
  const char* neutral;  ///< JSON; null is neutral too
};
constexpr NeutralField kNeutralFields[] = {
    {"audio", "null"},
    {"best_of", "1"},
    {"echo", "false"},
    {"frequency_penalty", "0"},
    {"function_call", "\"none\""},
    {"functions", "[]"},
    {"length_penalty", "1"},
    {"min_tokens", "0"},
    {"modalities", "[\"text\"]"},
    {"prediction", "null"},
    {"presence_penalty", "0"},
    {"response_format", "{\"type\": \"text\"}"},
    {"skip_special_tokens", "true"},
    {"spaces_between_special_tokens", "true"},
    {"suffix", "\"\""},
    {"tool_choice", "\"none\""},
    {"tools", "[]"},
    {"use_beam_search", "false"},
    {"web_search_options", "null"},
};
/// Fields that say nothing about the answer.
constexpr const char* kIgnoredFields[] = {"metadata",
                                          "parallel_tool_calls",
                                          "prompt_cache_key",
                                          "reasoning_effort",
                                          "safety_identifier",
                                          "service_tier",
                                          "store",
                                          "user",
                                          "verbosity"};
constexpr const char* kCommonFields[] = {"ignore_eos",  "logit_bias", "logprobs", "max_tokens",
                                         "min_p",       "model",      "n",        "repetition_penalty",
                                         "seed",        "stop",       "stream",   "stream_options",
                                         "temperature", "top_k",      "top_p"};

/// Runs `read`; an error gets the name of the field.
template <class F>
auto of_field(const char* name, F&& read) {
  try {
    return read();
  } catch (const RequestError&) {
    throw;
  } catch (const Error& error) {
    throw RequestError(400, error.what(), name);
  }
}

/// One JSON object of a request, whose getters throw RequestError naming the field. Null counts as absent.
class Fields {
 public:
  explicit Fields(const json& object, const std::string& source = "request") : fields_(object, source) {}

  const json* find(const char* name) const { return fields_.find(name); }
  int64_t integer(const char* name, int64_t low, int64_t high, std::optional<int64_t> otherwise = {}) const {
    return of_field(name, [&] { return fields_.integer(name, low, high, otherwise); });
  }
  double number(const char* name, double low, double high, double otherwise) const {
    return of_field(name, [&] { return fields_.number(name, low, high, otherwise); });
  }
  bool boolean(const char* name, bool otherwise) const {
    return of_field(name, [&] { return fields_.boolean(name, otherwise); });
  }
  std::string string(const char* name, std::optional<std::string> otherwise = {}) const {
    return of_field(name, [&] { return fields_.string(name, std::move(otherwise)); });
  }
  /// A short one: a name, a role.
  std::string name(const char* field, std::optional<std::string> otherwise = {}) const {
    std::string text = string(field, std::move(otherwise));
    if (text.size() > kMaxNameBytes)
      refuse(field, fmt::format("has {} bytes, at most {} are possible", text.size(), kMaxNameBytes));
    return text;
  }
  [[noreturn]] void refuse(const char* name, const std::string& problem) const {
    throw RequestError(400, fmt::format("{}: \"{}\" {}", fields_.source(), name, problem), name);
  }

 private:
  JsonFields fields_;
};

json parse_body(std::string_view body) {
  json document;
  try {
    document = parse_json(body, "request body");
  } catch (const Error& error) {
    throw RequestError(400, error.what(), {}, "invalid_json");
  }
  if (!document.is_object()) {
    throw RequestError(400,
                       fmt::format("request body: must be a JSON object, is {}", printable_value(document)),
                       {}, "invalid_json");
  }
  return document;
}

bool listed(std::string_view key, std::initializer_list<std::string_view> names) {
  return std::ranges::find(names, key) != names.end();
}

[[noreturn]] void refuse_unknown(const std::string& object, const std::string& key) {
  throw RequestError(400, fmt::format("{}: \"{}\" is not a field of this {}", object, key, object), key,
                     "unknown_parameter");
}

/// Refuses all fields but these.
void check_only(const json& object, const std::string& object_name,
                std::initializer_list<std::string_view> names) {
  for (const auto& [key, value] : object.items()) {
    if (!value.is_null() && !listed(key, names)) refuse_unknown(object_name, printable(key));
  }
}

/// Refuses fields that would change the answer and that we do not know or support.
void check_fields(const json& document, std::initializer_list<std::string_view> more) {
  for (const auto& [key, value] : document.items()) {
    if (value.is_null() || listed(key, more) ||
        std::ranges::find(kCommonFields, key) != std::end(kCommonFields) ||
        std::ranges::find(kIgnoredFields, key) != std::end(kIgnoredFields))
      continue;
    const auto neutral = std::ranges::find(kNeutralFields, key, &NeutralField::name);
    const std::string shown = printable(key);
    if (neutral == std::end(kNeutralFields)) refuse_unknown("request", shown);
    if (value == json::parse(neutral->neutral)) continue;
    // With nothing to choose from or to rank, these two ask for nothing either.
    if (key == "tool_choice" && value == "auto") continue;
    if (key == "best_of" && document.contains("n") && value == document["n"]) continue;
    throw RequestError(400, fmt::format("request: \"{}\" is not supported", shown), shown,
                       "unsupported_parameter");
  }
}

std::vector<std::string> parse_stop(const Fields& fields) {
  const json* stop = fields.find("stop");
  if (!stop) return {};
  if (stop->is_string()) return {*stop};
  if (!stop->is_array()) fields.refuse("stop", "must be a string or a list of strings");
  if (stop->size() > size_t{kMaxStopStrings})
    fields.refuse("stop",
                  fmt::format("has {} strings, at most {} are possible", stop->size(), kMaxStopStrings));
  std::vector<std::string> strings;
  for (const json& text : *stop) {
    if (!text.is_string()) fields.refuse("stop", "must be a string or a list of strings");
    strings.push_back(text);
  }
  return strings;
}

/// {"id": bias, …}, the ids as strings.
std::vector<TokenBias> parse_logit_bias(const Fields& fields) {
  const json* biases = fields.find("logit_bias");
  if (!biases) return {};
  if (!biases->is_object()) fields.refuse("logit_bias", "must be an object of token ids and numbers");
  std::vector<TokenBias> list;
  for (const auto& [key, value] : biases->items()) {
    int32_t id = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || std::to_string(id) != key)
      fields.refuse("logit_bias", fmt::format("holds \"{}\", which is no token id", printable(key)));
    if (!value.is_number())
      fields.refuse("logit_bias", fmt::format("holds {}, which is no number", printable_value(value)));
    list.push_back({id, value.get<float>()});
  }
  std::ranges::sort(list, {}, &TokenBias::id);
  return list;
}

/// What completions and chats share. Ranges are those of `check_sampling_params`, asked at the end.
void parse_shared(const Fields& fields, GenerationRequest& request) {
  request.model = fields.name("model", "");
  request.n = int(fields.integer("n", 1, kMaxChoices, 1));
  request.stream = fields.boolean("stream", false);
  if (const json* options = fields.find("stream_options")) {
    if (!request.stream) fields.refuse("stream_options", "is only for \"stream\": true");
    if (!options->is_object()) fields.refuse("stream_options", "must be an object");
    check_only(*options, "stream_options", {"include_usage"});
    request.include_usage = Fields(*options, "stream_options").boolean("include_usage", false);
  }
  if (fields.find("max_tokens")) request.max_tokens = int(fields.integer("max_tokens", 1, kMostTokens));
  SamplingParams& params = request.params;
  params.temperature = float(fields.number("temperature", 0, 100, 1));
  params.top_k = int(fields.integer("top_k", -1, kMostTokens, 0));
  if (params.top_k < 0) params.top_k = 0;  // how vLLM's clients say "off"
  params.top_p = float(fields.number("top_p", 0, 1, 1));
  params.min_p = float(fields.number("min_p", 0, 1, 0));
  params.repeat_penalty = float(fields.number("repetition_penalty", kLowestRepeatPenalty, 1000, 1));
  params.logit_bias = parse_logit_bias(fields);
  params.ignore_eos = fields.boolean("ignore_eos", false);
  params.stop = parse_stop(fields);
  constexpr int64_t kLowest = std::numeric_limits<int64_t>::min(),
                    kHighest = std::numeric_limits<int64_t>::max();
  if (fields.find("seed")) params.seed = uint64_t(fields.integer("seed", kLowest, kHighest));
}

void check_params(const SamplingParams& params) {
  try {
    check_sampling_params(params);
  } catch (const Error& error) {
    const std::string_view message = error.what();
    throw RequestError(400, error.what(), std::string(message.substr(0, message.find(' '))));
  }
}

std::vector<int32_t> parse_token_list(const Fields& fields, const char* name, const json& list) {
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (const json& id : list) {
    const bool fits =
        id.is_number_unsigned() && id.get<uint64_t>() <= uint64_t(std::numeric_limits<int32_t>::max());
    if (!fits) fields.refuse(name, fmt::format("holds {}, which is no token id", printable_value(id)));
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

/// A text, a list of texts, a list of token ids, or a list of such lists.
std::vector<PromptInput> parse_prompts(const Fields& fields) {
  const json* prompt = fields.find("prompt");
  if (!prompt) fields.refuse("prompt", "is missing");
  if (prompt->is_string()) return {prompt->get<std::string>()};
  if (!prompt->is_array() || prompt->empty())
    fields.refuse("prompt",
                  "must be a text, a list of texts, a list of token ids or a list of such lists, not empty");
  if (prompt->front().is_number()) return {parse_token_list(fields, "prompt", *prompt)};
  if (prompt->size() > size_t{kMaxChoices})
    fields.refuse("prompt",
                  fmt::format("has {} prompts, at most {} are possible", prompt->size(), kMaxChoices));
  std::vector<PromptInput> prompts;
  for (const json& entry : *prompt) {
    if (entry.is_string()) {
      prompts.emplace_back(entry.get<std::string>());
    } else if (entry.is_array()) {
      prompts.emplace_back(parse_token_list(fields, "prompt", entry));
    } else {
      fields.refuse("prompt", fmt::format("holds {}, which is no prompt", printable_value(entry)));
    }
  }
  return prompts;
}

/// A text, or a list of parts {"type": "text", "text": …}, put together.
std::string parse_content(const Fields& message) {
  const json* content = message.find("content");
  if (!content) message.refuse("content", "is missing");
  if (content->is_string()) return *content;
  if (!content->is_array()) message.refuse("content", "must be a text or a list of parts");
  std::string text;
  for (const json& part : *content) {
    if (!part.is_object())
      message.refuse("content", "must hold parts like {\"type\": \"text\", \"text\": …}");
    const Fields fields(part, "content part");
    const std::string type = fields.name("type");
    if (type != "text")
      fields.refuse("type", fmt::format("is \"{}\": only text is supported", printable(type)));
    text += fields.string("text");
  }
  return text;
}

ChatMessage parse_message(const json& entry, size_t index) {
  const std::string source = fmt::format("messages[{}]", index);
  if (!entry.is_object()) throw RequestError(400, fmt::format("{}: must be an object", source), "messages");
  const Fields fields(entry, source);
  ChatMessage message;
  message.role = fields.name("role");
  if (!listed(message.role, {"system", "developer", "user", "assistant", "tool"})) {
    fields.refuse("role", fmt::format("is \"{}\"; must be system, developer, user, assistant or tool",
                                      printable(message.role)));
  }
  message.content = parse_content(fields);
  message.name = fields.name("name", "");
  for (const auto& [key, value] : entry.items()) {
    if (listed(key, {"role", "content", "name"}) || value.is_null() ||
        (value.is_structured() && value.empty()))
      continue;
    fields.refuse(printable(key).c_str(), "is not supported");
  }
  return message;
}

void parse_completion_logprobs(const Fields& fields, SamplingParams& params) {
  const json* logprobs = fields.find("logprobs");
  if (!logprobs || *logprobs == false) return;
  params.logprobs = int(fields.integer("logprobs", 0, kMaxTopLogprobs));
}

void parse_chat_logprobs(const Fields& fields, SamplingParams& params) {
  const bool wanted = fields.boolean("logprobs", false);
  const int top = int(fields.integer("top_logprobs", 0, kMaxTopLogprobs, 0));
  if (!wanted && top > 0) fields.refuse("top_logprobs", "needs \"logprobs\": true");
  if (wanted) params.logprobs = top;
}

}  // namespace

GenerationRequest parse_completion_request(std::string_view body) {
  const json document = parse_body(body);
  check_fields(document, {"prompt"});
  const Fields fields(document);
  GenerationRequest request;
  parse_shared(fields, request);
  parse_completion_logprobs(fields, request.params);
  check_params(request.params);
  request.prompts = parse_prompts(fields);
  if (request.prompts.size() * size_t(request.n) > size_t{kMaxChoices}) {
    fields.refuse("n", fmt::format("asks for {} choices of {} prompts, at most {} answers are possible",
                                   request.n, request.prompts.size(), kMaxChoices));
  }
  return request;
}

GenerationRequest parse_chat_request(std::string_view body) {
  const json document = parse_body(body);
  check_fields(document, {"messages", "max_completion_tokens", "top_logprobs"});
  const Fields fields(document);
  GenerationRequest request;
  request.chat = true;
  parse_shared(fields, request);
  if (fields.find("max_completion_tokens"))
    request.max_tokens = int(fields.integer("max_completion_tokens", 1, kMostTokens));
  parse_chat_logprobs(fields, request.params);
  check_params(request.params);
  const json* messages = fields.find("messages");
  if (!messages || !messages->is_array() || messages->empty())
    fields.refuse("messages", "must be a list with at least one message");
  if (messages->size() > kMaxMessages)
    fields.refuse("messages",
                  fmt::format("has {} messages, at most {} are possible", messages->size(), kMaxMessages));
  for (const json& entry : *messages)
    request.messages.push_back(parse_message(entry, request.messages.size()));
  return request;
}

TokenizeRequest parse_tokenize_request(std::string_view body) {
  const json document = parse_body(body);
  check_only(document, "request", {"model", "prompt", "add_special_tokens"});
  const Fields fields(document);
  return {.model = fields.name("model", ""),
          .text = fields.string("prompt"),
          .add_special_tokens = fields.boolean("add_special_tokens", true)};
}

DetokenizeRequest parse_detokenize_request(std::string_view body) {
  const json document = parse_body(body);
  check_only(document, "request", {"model", "tokens"});
  const Fields fields(document);
  const json* tokens = fields.find("tokens");
  if (!tokens || !tokens->is_array()) fields.refuse("tokens", "must be a list of token ids");
  return {.model = fields.name("model", ""), .tokens = parse_token_list(fields, "tokens", *tokens)};
}

}  // namespace spinfer
