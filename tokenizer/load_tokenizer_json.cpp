// tokenizer.json of Hugging Face's tokenizers library, for BPE models: GPT-2, OPT, LLaMA 2 and 3, Qwen2.
// Steps this program does not know are refused by name, never skipped.
#include <fmt/format.h>

#include "tokenizer/byte_alphabet.h"
#include "tokenizer/json_reader.h"
#include "tokenizer/tokenizer_impl.h"

namespace spinfer {
namespace {

using nlohmann::json;

constexpr std::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr size_t kMaxInsertedBytes = 256;  // what a step may put in place of, or before, a text

// Calls f(step) for the steps of a "Sequence" under `list_key`, or for `component` itself.
template <typename F>
void for_each_step(const JsonObject& component, std::string_view list_key, const F& f) {
  if (component.string("type") != "Sequence") return f(component);
  size_t i = 0;
  for (const json& item : component.array(list_key)) {
    const JsonObject step(component.file(), fmt::format("{}[{}]", component.place(list_key), i++), item);
    for_each_step(step, list_key, f);
  }
}

[[noreturn]] void fail_unsupported(const JsonObject& step) {
  step.fail(fmt::format("type {} is not supported", in_quotes(step.string("type"))));
}

std::string short_string(const JsonObject& step, std::string_view key, std::string_view otherwise) {
  std::string text = step.string_or(key, otherwise);
  if (text.empty() || text.size() > kMaxInsertedBytes) {
    step.fail(fmt::format("'{}' has {} bytes, legal are 1 ... {}", key, text.size(), kMaxInsertedBytes));
  }
  return text;
}

void check_steps(const JsonObject& step, const TextPipeline& pipeline) {
  if (pipeline.size() >= TextPipeline::kMaxSteps)
    step.fail(fmt::format("more than {} steps are not supported", TextPipeline::kMaxSteps));
}

// A pattern {"String": "..."} or {"Regex": "..."}.
SplitRegex read_pattern(const JsonObject& step) {
  const JsonObject pattern = step.object("pattern");
  const bool literal = pattern.find("String") != nullptr;
  try {
    return SplitRegex::compile(pattern.string(literal ? "String" : "Regex"), literal);
  } catch (const std::runtime_error& e) {
    pattern.fail(e.what());
  }
}

void add_normalizer(const JsonObject& step, TextPipeline& pipeline) {
  check_steps(step, pipeline);
  const std::string type = step.string("type");
  if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
    const bool compatibility = type.size() == 4, compose = type.back() == 'C';
    pipeline.add(NormalizeStep{compatibility ? (compose ? UnicodeForm::kNfkc : UnicodeForm::kNfkd)
                                             : (compose ? UnicodeForm::kNfc : UnicodeForm::kNfd)});
  } else if (type == "Prepend") {
    pipeline.add(PrependStep{short_string(step, "prepend", ""), PrependStep::When::kAlways});
  } else if (type == "Replace") {
    const std::string from = short_string(step.object("pattern"), "String", "");
    const std::string to = step.string("content");
    if (to.size() > kMaxInsertedBytes)
      step.fail(fmt::format("'content' is longer than {} bytes", kMaxInsertedBytes));
    pipeline.add(ReplaceStep{from, to});
  } else {
    fail_unsupported(step);
  }
}

void add_metaspace(const JsonObject& step, TextPipeline& pipeline) {
  if (step.string_or("replacement", kMetaspace) != kMetaspace) step.fail("'replacement' must be U+2581");
  pipeline.add(ReplaceStep{" ", std::string(kMetaspace)});
  const bool add_prefix = step.boolean("add_prefix_space").value_or(true);
  const std::string scheme = step.string_or("prepend_scheme", add_prefix ? "always" : "never");
  if (scheme != "always" && scheme != "first" && scheme != "never") {
    step.fail(fmt::format("prepend_scheme {} is not supported", in_quotes(scheme)));
  }
  if (scheme != "never") {
    pipeline.add(PrependStep{std::string(kMetaspace), scheme == "first" ? PrependStep::When::kUnlessThereFirst
                                                                        : PrependStep::When::kUnlessThere});
  }
  if (step.boolean("split").value_or(true)) {
    pipeline.add(SplitStep{SplitRegex::compile(fmt::format("{0}[^{0}]*|[^{0}]+", kMetaspace), false)});
  }
}

void add_split(const JsonObject& step, TextPipeline& pipeline) {
  const std::string behavior = step.string("behavior");
  const bool invert = step.boolean("invert").value_or(false);
  if (behavior == "Isolated") {
    pipeline.add(SplitStep{read_pattern(step)});
  } else if (behavior == "Removed") {
    pipeline.add(SplitStep{read_pattern(step), invert, !invert});
  } else {
    step.fail(fmt::format("behavior {} is not supported", in_quotes(behavior)));
  }
}

// Adds a pre-tokenizer; sets `byte_level` at the ByteLevel step, which must be the last.
void add_pre_tokenizer(const JsonObject& step, TextPipeline& pipeline, bool& byte_level) {
  check_steps(step, pipeline);
  const std::string type = step.string("type");
  if (byte_level) step.fail(fmt::format("{} after ByteLevel is not supported", in_quotes(type)));
  if (type == "ByteLevel") {
    byte_level = true;
    if (step.boolean("add_prefix_space").value_or(true)) {
      pipeline.add(PrependStep{" ", PrependStep::When::kUnlessThere});
    }
    if (step.boolean("use_regex").value_or(true)) {
      pipeline.add(SplitStep{SplitRegex::compile(kByteLevelPattern, false)});
    }
  } else if (type == "Split") {
    add_split(step, pipeline);
  } else if (type == "Digits") {
    const bool single = step.boolean("individual_digits").value_or(false);
    pipeline.add(SplitStep{SplitRegex::compile(single ? "\\p{N}" : "\\p{N}+", false)});
  } else if (type == "Metaspace") {
    add_metaspace(step, pipeline);
  } else {
    fail_unsupported(step);
  }
}

struct DecoderSteps {
  bool metaspace = false;  // U+2581 is a space
  bool drop_first_space = false;
};

void read_decoder(const JsonObject& step, DecoderSteps& out) {
  const std::string type = step.string("type");
  if (type == "Metaspace") {
    out.metaspace = true;
    out.drop_first_space = step.boolean("add_prefix_space").value_or(true) &&
                           step.string_or("prepend_scheme", "always") != "never";
  } else if (type == "Replace") {
    if (step.object("pattern").string("String") != kMetaspace || step.string("content") != " ") {
      step.fail("only replacing U+2581 by a space is supported");
    }
    out.metaspace = true;
  } else if (type == "Strip") {
    if (step.string("content") != " " || step.integer("start") != 1 || step.integer("stop") != 0) {
      step.fail("only stripping one leading space is supported");
    }
    out.drop_first_space = true;
  } else if (type != "ByteLevel" && type != "ByteFallback" && type != "Fuse") {
    fail_unsupported(step);
  }
}

void add_piece(std::string_view piece, int64_t id, const BpeRules& rules, const DecoderSteps& decoder,
               Vocabulary& vocabulary) {
  if (rules.byte_level) {
    vocabulary.add(id, piece, bytes_of_piece(piece).value_or(std::string(piece)), PieceKind::kText);
  } else if (const auto byte = rules.byte_fallback ? byte_of_fallback_piece(piece) : std::nullopt) {
    vocabulary.add(id, piece, std::string(1, static_cast<char>(*byte)), PieceKind::kByte);
  } else {
    vocabulary.add(id, piece, decoder.metaspace ? metaspace_to_space(piece) : std::string(piece),
                   PieceKind::kText);
  }
}

Vocabulary read_vocab(const JsonObject& model, const BpeRules& rules, const DecoderSteps& decoder) {
  const JsonObject vocab = model.object("vocab");
  Vocabulary vocabulary;
  for (const auto& [piece, id] : vocab.value().items()) {
    const int64_t value = json_integer(vocab.file(), vocab.place(in_quotes(piece)), id);
    try {
      add_piece(piece, value, rules, decoder, vocabulary);
    } catch (const std::runtime_error& e) {
      vocab.fail(e.what());
    }
  }
  return vocabulary;
}

std::vector<AddedToken> read_added_tokens(const JsonObject& root, Vocabulary& vocabulary) {
  std::vector<AddedToken> tokens;
  if (root.find("added_tokens") == nullptr) return tokens;
  for (const json& item : root.array("added_tokens")) {
    const JsonObject entry(root.file(), fmt::format("added_tokens[{}]", tokens.size()), item);
    AddedToken token = read_added_token(entry, entry.integer("id"));
    try {
      vocabulary.add_or_rename(token.id, token.content,
                               token.special ? PieceKind::kSpecial : PieceKind::kText);
    } catch (const std::runtime_error& e) {
      entry.fail(e.what());
    }
    tokens.push_back(std::move(token));
  }
  return tokens;
}

// "a b", or ["a", "b"] in files written since 2024.
void read_merge(const JsonObject& model, const json& item, uint32_t rank, const Vocabulary& vocabulary,
                MergeTable& table) {
  const auto place = [&] { return fmt::format("merges[{}]", rank); };
  std::string left, right;
  if (item.is_string()) {
    const std::string& both = item.get_ref<const std::string&>();
    const size_t space = both.find(' ');
    if (space == std::string::npos)
      model.fail(fmt::format("{}: {} is not two pieces", place(), in_quotes(both)));
    left = both.substr(0, space);
    right = both.substr(space + 1);
  } else if (item.is_array() && item.size() == 2 && item[0].is_string() && item[1].is_string()) {
    left = item[0].get<std::string>();
    right = item[1].get<std::string>();
  } else {
    model.fail(fmt::format("{} must be a string or two strings", place()));
  }
  try {
    add_merge(vocabulary, rank, left, right, table);
  } catch (const std::runtime_error& e) {
    model.fail(fmt::format("{}: {}", place(), e.what()));
  }
}

MergeTable read_merges(const JsonObject& model, const Vocabulary& vocabulary) {
  const json& list = model.array("merges");
  MergeTable table(list.size());
  uint32_t rank = 0;
  for (const json& item : list) read_merge(model, item, rank++, vocabulary, table);
  return table;
}

BpeRules read_rules(const JsonObject& model) {
  if (model.string_or("type", "BPE") != "BPE") fail_unsupported(model);
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model.string_or(key, "").empty()) model.fail(fmt::format("'{}' is not supported", key));
  }
  if (const json* dropout = model.find("dropout"); dropout != nullptr && *dropout != 0) {
    model.fail("'dropout' is not supported");
  }
  return {.byte_fallback = model.boolean("byte_fallback").value_or(false),
          .fuse_unk = model.boolean("fuse_unk").value_or(false),
          .ignore_merges = model.boolean("ignore_merges").value_or(false)};
}

int32_t known_token(const JsonObject& step, std::string_view name, const Vocabulary& vocabulary) {
  const auto id = vocabulary.find(name);
  if (!id) step.fail(fmt::format("token {} is not in the vocabulary", in_quotes(name)));
  return *id;
}

// The special token that the post-processor puts before a text. What it puts after is for sentence pairs and
// training.
void read_post_processor(const JsonObject& step, const Vocabulary& vocabulary, FileDefaults& out) {
  const std::string type = step.string("type");
  const auto set_bos = [&](std::string_view token) {
    if (out.bos) step.fail("more than one token before the text is not supported");
    out.bos = known_token(step, token, vocabulary);
    out.adds_bos = true;
  };
  if (type == "TemplateProcessing") {
    size_t i = 0;
    for (const json& item : step.array("single")) {
      const JsonObject part(step.file(), fmt::format("{}[{}]", step.place("single"), i++), item);
      if (part.find("SpecialToken") == nullptr) break;
      set_bos(part.object("SpecialToken").string("id"));
    }
  } else if (type == "RobertaProcessing" || type == "BertProcessing") {
    const json& cls = step.array("cls");
    if (cls.empty() || !cls[0].is_string()) step.fail("'cls' must be [token, id]");
    set_bos(cls[0].get<std::string>());
  } else if (type != "ByteLevel") {
    fail_unsupported(step);
  }
}

}  // namespace

std::unique_ptr<TokenizerImpl> load_tokenizer_json(const TokenizerFile& file, const FileSet& files,
                                                   const TokenizerHints& hints) {
  const json document = parse_json_object(file);
  const JsonObject root(file, "", document);
  const JsonObject model_json = root.object("model");

  BpeRules rules = read_rules(model_json);
  TextPipeline pipeline;
  if (root.find("normalizer") != nullptr) {
    for_each_step(root.object("normalizer"), "normalizers",
                  [&](const auto& s) { add_normalizer(s, pipeline); });
  }
  if (root.find("pre_tokenizer") != nullptr) {
    for_each_step(root.object("pre_tokenizer"), "pretokenizers",
                  [&](const auto& s) { add_pre_tokenizer(s, pipeline, rules.byte_level); });
  }
  DecoderSteps decoder;
  if (root.find("decoder") != nullptr) {
    for_each_step(root.object("decoder"), "decoders", [&](const auto& s) { read_decoder(s, decoder); });
  }

  Vocabulary vocabulary = read_vocab(model_json, rules, decoder);
  std::vector<AddedToken> added = read_added_tokens(root, vocabulary);
  const std::string unk = model_json.string_or("unk_token", "");
  if (!unk.empty()) rules.unk = known_token(model_json, unk, vocabulary);
  FileDefaults defaults;
  if (root.find("post_processor") != nullptr) {
    for_each_step(root.object("post_processor"), "processors",
                  [&](const auto& s) { read_post_processor(s, vocabulary, defaults); });
  } else {
    defaults.adds_bos = hints.model_type == "llama" && !rules.byte_level;  // LlamaTokenizer's default
  }
  BpeModel model(vocabulary, std::move(pipeline), read_merges(model_json, vocabulary), rules);
  const DecodeRules decode{decoder.drop_first_space, false,
                           rules.byte_level ? InvalidBytes::kOnePerSequence : InvalidBytes::kOnePerByte};
  return assemble(file, std::move(vocabulary), std::move(added), std::move(model), decode, defaults,
                  SpecialTokenFiles::read(files), hints);
}

}  // namespace spinfer
