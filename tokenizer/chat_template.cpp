#include "tokenizer/chat_template.h"

#include <fmt/format.h>

#include "tokenizer/file_set.h"
#include "tokenizer/jinja_evaluator.h"
#include "tokenizer/json_reader.h"
#include "tokenizer/special_token_files.h"

namespace spinfer {
namespace {

constexpr size_t kMaxTemplateBytes = size_t{256} << 10;

/// "chat_template": a text, or a list of {"name": …, "template": …}.
std::optional<std::string> template_of(const JsonObject& config) {
  const nlohmann::json* value = config.find("chat_template");
  if (!value) return std::nullopt;
  if (value->is_string()) return value->get<std::string>();
  for (const auto& entry : config.array("chat_template")) {
    const JsonObject named(config.file(), config.place("chat_template"), entry);
    if (named.string("name") == "default") return named.string("template");
  }
  config.fail("'chat_template' has no template named default");
}

}  // namespace

std::optional<ChatTemplate> ChatTemplate::load(const std::filesystem::path& dir) {
  return from_files(FileSet::read(dir));
}

std::optional<ChatTemplate> ChatTemplate::from_files(const FileSet& files) {
  std::optional<std::string> source;
  if (const TokenizerFile* file = files.find("chat_template.jinja")) {
    source = file->content;
  } else if (const TokenizerFile* config = files.find("tokenizer_config.json")) {
    const auto json = parse_json_object(*config);
    source = template_of(JsonObject(*config, "", json));
  }
  if (!source) return std::nullopt;
  const SpecialTokenFiles special = SpecialTokenFiles::read(files);
  return ChatTemplate(*source, special.bos.value_or(""), special.eos.value_or(""));
}

ChatTemplate::ChatTemplate(std::string_view source, std::string bos_token, std::string eos_token)
    : bos_token_(std::move(bos_token)), eos_token_(std::move(eos_token)) {
  try {
    if (source.size() > kMaxTemplateBytes) {
      throw ChatTemplateError(
          fmt::format("chat template of {} bytes, at most {} are read", source.size(), kMaxTemplateBytes));
    }
    template_ = std::make_shared<const jinja::Template>(jinja::parse(source));
  } catch (const ChatTemplateError& error) {
    syntax_error_ = error.what();
  }
}

ChatTemplate ChatTemplate::with_source(const std::filesystem::path& dir, std::string_view source) {
  const SpecialTokenFiles special = SpecialTokenFiles::read(FileSet::read(dir));
  return ChatTemplate(source, special.bos.value_or(""), special.eos.value_or(""));
}

std::string ChatTemplate::render(const std::vector<ChatMessage>& messages, bool add_generation_prompt) const {
  using jinja::Value;
  if (!template_) throw ChatTemplateError(syntax_error_);
  jinja::List list;
  for (const ChatMessage& message : messages) {
    jinja::Dict entry{{"role", {message.role}}, {"content", {message.content}}};
    if (!message.name.empty()) entry.emplace_back("name", Value{message.name});
    list.push_back(Value::dict(std::move(entry)));
  }
  return jinja::evaluate(*template_, {{"messages", Value::list(std::move(list))},
                                      {"add_generation_prompt", {add_generation_prompt}},
                                      {"bos_token", {bos_token_}},
                                      {"eos_token", {eos_token_}},
                                      {"tools", {nullptr}},
                                      {"documents", {nullptr}}});
}

}  // namespace spinfer
