#include "engine/server/served_model.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>
#include <random>

namespace spinfer {
namespace {

const Tokenizer& tokenizer_of(const Engine& engine) {
  check(engine.tokenizer() != nullptr, "serving needs tokenizer files ({})", kTokenizerFiles);
  return *engine.tokenizer();
}

/// "cmpl-" and 96 random bits.
std::string draw_id(const char* prefix) {
  thread_local std::random_device random;
  return fmt::format("{}-{:08x}{:08x}{:08x}", prefix, random(), random(), random());
}

}  // namespace

ServedModel::ServedModel(const Engine& engine, std::vector<std::string> names,
                         std::optional<ChatTemplate> chat_template)
    : tokenizer_(tokenizer_of(engine)),
      max_model_len_(engine.max_model_len()),
      created_(std::time(nullptr)),
      names_(std::move(names)),
      chat_template_(std::move(chat_template)) {}

bool ServedModel::has_name(std::string_view name) const {
  return std::ranges::find(names_, name) != names_.end();
}

void ServedModel::fail_not_served(std::string_view name) const {
  throw RequestError(
      404,
      fmt::format("the model '{}' is not served here; there is '{}'", name.substr(0, 200), names_.front()),
      "model", "model_not_found");
}

void ServedModel::check_name(const std::string& name) const {
  if (!name.empty() && !has_name(name)) fail_not_served(name);
}

int ServedModel::token_budget(const GenerationRequest& request, int64_t prompt_tokens) const {
  constexpr int kCompletionDefault = 16;
  const int64_t room = max_model_len_ - prompt_tokens;
  if (room < 1 || (request.max_tokens && *request.max_tokens > room)) {
    const std::string wanted = request.max_tokens ? fmt::format(" and {} new ones", *request.max_tokens) : "";
    throw RequestError(400,
                       fmt::format("the prompt has {} tokens{}; the model takes {} altogether", prompt_tokens,
                                   wanted, max_model_len_),
                       request.chat ? "messages" : "prompt", "context_length_exceeded");
  }
  if (request.max_tokens) return *request.max_tokens;
  return int(request.chat ? room : std::min<int64_t>(room, kCompletionDefault));
}

void ServedModel::check_bytes(std::string_view text, const char* field) const {
  const auto most = tokenizer_.most_bytes(max_model_len_);
  if (!most || int64_t(text.size()) <= *most) return;
  throw RequestError(
      400,
      fmt::format("the prompt has {} bytes, which are more tokens than the {} that the model takes",
                  text.size(), max_model_len_),
      field, "context_length_exceeded");
}

PreparedRequest ServedModel::prepare(const GenerationRequest& request,
                                     std::vector<std::vector<int32_t>> prompts,
                                     std::chrono::steady_clock::time_point arrived) const {
  PreparedRequest prepared{
      .submissions = {},
      .format = AnswerFormat(request.chat, draw_id(request.chat ? "chatcmpl" : "cmpl"),
                             request.model.empty() ? names_.front() : request.model, std::time(nullptr),
                             request.params.logprobs >= 0, tokenizer_),
      .stream = request.stream,
      .include_usage = request.include_usage,
      .prompt_tokens = 0,
      .choices_per_prompt = request.n,
      .arrived = arrived};
  for (std::vector<int32_t>& prompt : prompts) {
    if (prompt.empty()) throw RequestError(400, "the prompt has no tokens", "prompt");
    prepared.prompt_tokens += int64_t(prompt.size());
    SamplingParams params = request.params;
    params.max_tokens = token_budget(request, int64_t(prompt.size()));
    for (int i = 0; i < request.n; ++i) {
      if (request.params.seed) params.seed = *request.params.seed + uint64_t(i);
      prepared.submissions.push_back({.ticket = 0, .prompt = prompt, .params = params});
    }
  }
  return prepared;
}

PreparedRequest ServedModel::prepare_completion(std::string_view body,
                                                std::chrono::steady_clock::time_point arrived) const {
  GenerationRequest request = parse_completion_request(body);
  check_name(request.model);
  std::vector<std::vector<int32_t>> prompts;
  for (PromptInput& prompt : request.prompts) {
    const auto* text = std::get_if<std::string>(&prompt);
    if (text) check_bytes(*text, "prompt");
    prompts.push_back(text ? tokenizer_.encode(*text, true)
                           : std::move(std::get<std::vector<int32_t>>(prompt)));
  }
  return prepare(request, std::move(prompts), arrived);
}

PreparedRequest ServedModel::prepare_chat(std::string_view body,
                                          std::chrono::steady_clock::time_point arrived) const {
  const GenerationRequest request = parse_chat_request(body);
  check_name(request.model);
  if (!chat_template_) {
    throw RequestError(400,
                       "the model has no chat template (chat_template in tokenizer_config.json); use "
                       "/v1/completions, or serve it with --chat-template FILE",
                       "messages", "no_chat_template");
  }
  std::string text;
  try {
    text = chat_template_->render(request.messages, true);
  } catch (const ChatTemplateError& error) {
    throw RequestError(400, error.what(), "messages", "chat_template");
  }
  check_bytes(text, "messages");
  return prepare(request, {tokenizer_.encode(text, false, true)}, arrived);
}

std::string ServedModel::tokenize(std::string_view body) const {
  const TokenizeRequest request = parse_tokenize_request(body);
  check_name(request.model);
  const std::vector<int32_t> ids = tokenizer_.encode(request.text, request.add_special_tokens);
  return fmt::format(R"({{"count":{},"max_model_len":{},"tokens":[{}]}})", ids.size(), max_model_len_,
                     fmt::join(ids, ","));
}

std::string ServedModel::detokenize(std::string_view body) const {
  const DetokenizeRequest request = parse_detokenize_request(body);
  check_name(request.model);
  try {
    return fmt::format(R"({{"prompt":{}}})", json_string(tokenizer_.decode(request.tokens)));
  } catch (const std::runtime_error& error) {
    throw RequestError(400, error.what(), "tokens");
  }
}

std::string ServedModel::entry(const std::string& name) const {
  return fmt::format(
      R"({{"id":{},"object":"model","created":{},"owned_by":"spinfer","max_model_len":{},"chat":{}}})",
      json_string(name), created_, max_model_len_, chat_template_.has_value());
}

std::string ServedModel::list() const {
  std::string entries;
  for (const std::string& name : names_) {
    if (!entries.empty()) entries += ',';
    entries += entry(name);
  }
  return fmt::format(R"({{"object":"list","data":[{}]}})", entries);
}

std::string ServedModel::describe(std::string_view name) const {
  if (!has_name(name)) fail_not_served(name);
  return entry(std::string(name));
}

}  // namespace spinfer
