#include "tokenizer/chat_template.h"

#include <fmt/format.h>

#include "tokenizer/file_set.h"
#include "tokenizer/jinja_evaluator.h"
#include "tokenizer/json_reader.h"
#include "tokenizer/special_token_files.h"
#include "tokenizer/tokenizer.h"

namespace spinfer {
namespace {

struct Source {
  std::string text;
  std::string problem = {};  ///< why there is no text
};

/// "chat_template": a text, or a list of {"name": …, "template": …}.
std::optional<Source> source_of(const JsonObject& config) {
  const nlohmann::json* value = config.find("chat_template");
  if (!value) return std::nullopt;
  if (value->is_string()) return Source{value->get<std::string>()};
  for (const auto& entry : config.array("chat_template")) {
    const JsonObject named(config.file(), config.place("chat_template"), entry);
    if (named.string("name") == "default") return Source{named.string("template")};
  }
  return Source{"", "tokenizer_config.json: 'chat_template' has no template named default"};
}

}  // namespace

std::optional<ChatTemplate> ChatTemplate::load(const std::filesystem::path& dir) {
  return from_files(FileSet::read(dir));
}

std::optional<ChatTemplate> ChatTemplate::from_files(const FileSet& files) {
  std::optional<Source> source;
  if (const TokenizerFile* file = files.find("chat_template.jinja")) {
    source = Source{file->content};
  } else if (const TokenizerFile* config = files.find("tokenizer_config.json")) {
    const auto json = parse_json_object(*config);
    source = source_of(JsonObject(*config, "", json));
  }
  if (!source) return std::nullopt;
  ChatTemplate chat = with_tokens_of(files, source->text);
  if (!source->problem.empty()) {
    chat.template_ = nullptr;
    chat.unusable_ = source->problem;
  }
  return chat;
}

ChatTemplate::ChatTemplate(std::string_view source, std::optional<std::string> bos_token,
                           std::optional<std::string> eos_token)
    : bos_token_(std::move(bos_token)), eos_token_(std::move(eos_token)) {
  try {
    if (source.size() > kMaxTemplateBytes) {
      throw ChatTemplateError(
          fmt::format("chat template of {} bytes, at most {} are read", source.size(), kMaxTemplateBytes));
    }
    template_ = std::make_shared<const jinja::Template>(jinja::parse(source));
  } catch (const ChatTemplateError& error) {
    unusable_ = error.what();
  }
}

ChatTemplate ChatTemplate::with_source(const std::filesystem::path& dir, std::string_view source) {
  return with_tokens_of(FileSet::read(dir), source);
}

ChatTemplate ChatTemplate::with_tokens_of(const FileSet& files, std::string_view source) {
  SpecialTokenFiles special = SpecialTokenFiles::read(files);
  if (special.lists_bos && !special.bos) special.bos = "";
  if (special.lists_eos && !special.eos) special.eos = "";
  return ChatTemplate(source, std::move(special.bos), std::move(special.eos));
}

void ChatTemplate::take_missing_tokens(const Tokenizer& tokenizer) {
  const auto take = [&](std::optional<std::string>& token, int32_t id) {
    if (!token && id >= 0 && id < tokenizer.vocab_size()) token = tokenizer.piece_bytes(id);
  };
  take(bos_token_, tokenizer.bos_id().value_or(-1));
  take(eos_token_, tokenizer.eos_ids().empty() ? -1 : tokenizer.eos_ids().front());
}

std::string ChatTemplate::render(const std::vector<ChatMessage>& messages, bool add_generation_prompt) const {
  using jinja::Value;
  if (!template_) throw ChatTemplateError(unusable_);
  jinja::List list;
  for (const ChatMessage& message : messages) {
    jinja::Dict entry{{"role", {message.role}}, {"content", {message.content}}};
    if (!message.name.empty()) entry.emplace_back("name", Value{message.name});
    list.push_back(Value::dict(std::move(entry)));
  }
  return jinja::evaluate(*template_, {{"messages", Value::list(std::move(list))},
                                      {"add_generation_prompt", {add_generation_prompt}},
                                      {"bos_token", {bos_token_.value_or("")}},
                                      {"eos_token", {eos_token_.value_or("")}},
                                      {"tools", {nullptr}},
                                      {"documents", {nullptr}}});
}

}  // namespace spinfer
