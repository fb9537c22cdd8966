#include "tokenizer/special_token_files.h"

#include <fmt/format.h>

#include <charconv>
#include <stdexcept>

#include "tokenizer/json_reader.h"

namespace spinfer {
namespace {

// A token is written as "<s>" or as {"content": "<s>", ...}.
std::optional<std::string> token_string(const JsonObject& config, std::string_view key) {
  const auto* value = config.find(key);
  if (value == nullptr) return std::nullopt;
  const std::string content = value->is_object() ? config.object(key).string("content") : config.string(key);
  if (content.empty()) return std::nullopt;  // early LLaMA-1 conversions
  return content;
}

void read_token_names(const JsonObject& config, SpecialTokenFiles& out) {
  const auto set = [&](std::optional<std::string>& name, std::string_view key) {
    if (auto value = token_string(config, key)) name = std::move(value);
  };
  set(out.bos, "bos_token");
  set(out.eos, "eos_token");
  out.lists_bos |= config.value().contains("bos_token");
  out.lists_eos |= config.value().contains("eos_token");
  set(out.unk, "unk_token");
  set(out.pad, "pad_token");
}

void read_added_tokens_decoder(const JsonObject& config, SpecialTokenFiles& out) {
  if (config.find("added_tokens_decoder") == nullptr) return;
  const JsonObject decoder = config.object("added_tokens_decoder");
  for (const auto& [key, value] : decoder.value().items()) {
    int64_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size())
      decoder.fail(fmt::format("{} is not an id", in_quotes(key)));
    out.added.push_back(read_added_token(JsonObject(config.file(), decoder.place(key), value), id));
  }
}

}  // namespace

AddedToken read_added_token(const JsonObject& entry, int64_t id) {
  if (id < 0 || id >= kMaxPieces) entry.fail(fmt::format("id {} is not in 0 ... {}", id, kMaxPieces - 1));
  const std::string content = entry.string("content");
  if (content.empty()) entry.fail("'content' is an empty string");
  if (entry.boolean("single_word").value_or(false)) entry.fail("single_word tokens are not supported");
  return {static_cast<int32_t>(id), content, entry.boolean("special").value_or(false),
          entry.boolean("lstrip").value_or(false), entry.boolean("rstrip").value_or(false)};
}

SpecialTokenFiles SpecialTokenFiles::read(const FileSet& files) {
  SpecialTokenFiles out;
  if (const TokenizerFile* file = files.find("special_tokens_map.json")) {
    const auto json = parse_json_object(*file);
    read_token_names(JsonObject(*file, "", json), out);
  }
  if (const TokenizerFile* file = files.find("tokenizer_config.json")) {
    const auto json = parse_json_object(*file);
    const JsonObject config(*file, "", json);
    read_token_names(config, out);
    out.add_bos = config.boolean("add_bos_token");
    out.add_prefix_space = config.boolean("add_prefix_space");
    out.legacy = config.boolean("legacy");
    read_added_tokens_decoder(config, out);
  }
  if (const TokenizerFile* file = files.find("added_tokens.json"); file != nullptr && out.added.empty()) {
    const auto json = parse_json_object(*file);
    for (const auto& [content, id] : json.items()) {
      const int64_t value = json_integer(*file, in_quotes(content), id);
      if (content.empty() || value < 0 || value >= kMaxPieces) {
        fail_file(file->path, fmt::format("{}: id {} is not in 0 ... {}, or the token is empty",
                                          in_quotes(content), value, kMaxPieces - 1));
      }
      out.added.push_back({static_cast<int32_t>(value), content});
    }
  }
  return out;
}

std::vector<AddedToken> SpecialTokenFiles::apply(Vocabulary& vocabulary) const {
  for (const AddedToken& token : added) {
    vocabulary.add_or_rename(token.id, token.content, token.special ? PieceKind::kSpecial : PieceKind::kText);
  }
  for (const auto& name : {bos, eos, unk, pad}) {
    if (!name) continue;
    if (const auto id = vocabulary.find(*name)) vocabulary.mark_special(*id);
  }
  std::vector<AddedToken> tokens;
  std::vector<bool> listed(vocabulary.size(), false);
  for (AddedToken token : added) {
    listed[token.id] = true;
    token.special = vocabulary.kind(token.id) == PieceKind::kSpecial;
    tokens.push_back(std::move(token));
  }
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    if (vocabulary.kind(id) == PieceKind::kSpecial && !listed[id])
      tokens.push_back({id, std::string(vocabulary.piece(id)), true});
  }
  return tokens;
}

}  // namespace spinfer
