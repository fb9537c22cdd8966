// vocab.json and merges.txt, as GPT-2 and OPT ship them.
#include <fmt/format.h>

#include "tokenizer/byte_alphabet.h"
#include "tokenizer/json_reader.h"
#include "tokenizer/tokenizer_impl.h"

namespace spinfer {
namespace {

// Hugging Face's GPT2Tokenizer and Qwen2Tokenizer; these files do not hold their pattern.
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

Vocabulary read_vocab(const TokenizerFile& file) {
  const auto json = parse_json_object(file);
  return naming_file(file.path, [&] {
    Vocabulary vocabulary;
    for (const auto& [piece, id] : json.items()) {
      if (!id.is_number_integer())
        throw std::runtime_error(fmt::format("the id of {} is no integer", in_quotes(piece)));
      vocabulary.add(json_integer(file, in_quotes(piece), id), piece, bytes_of_piece(piece).value_or(piece),
                     PieceKind::kText);
    }
    return vocabulary;
  });
}

MergeTable read_merges(const TokenizerFile& file, const Vocabulary& vocabulary) {
  std::string_view rest = file.content;
  MergeTable merges(vocabulary.size());
  uint32_t rank = 0;
  for (size_t number = 1; !rest.empty(); ++number) {
    std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line.starts_with("#version")) continue;
    const size_t space = line.find(' ');
    if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos) {
      throw std::runtime_error(fmt::format("line {}: {} is not two pieces", number, in_quotes(line)));
    }
    try {
      add_merge(vocabulary, rank++, line.substr(0, space), line.substr(space + 1), merges);
    } catch (const std::runtime_error& e) {
      throw std::runtime_error(fmt::format("line {}: {}", number, e.what()));
    }
  }
  return merges;
}

// fairseq dictionaries begin with these four; OPT's does, GPT-2's does not.
bool is_fairseq_dictionary(const Vocabulary& vocabulary) {
  constexpr std::string_view kFirst[] = {"<s>", "<pad>", "</s>", "<unk>"};
  for (int32_t id = 0; id < 4; ++id) {
    if (vocabulary.find(kFirst[id]) != id) return false;
  }
  return true;
}

}  // namespace

std::unique_ptr<TokenizerImpl> load_vocab_merges(const TokenizerFile& vocab, const TokenizerFile& merges_file,
                                                 const FileSet& files, const TokenizerHints& hints) {
  SpecialTokenFiles special = SpecialTokenFiles::read(files);
  Vocabulary vocabulary = read_vocab(vocab);
  const bool is_opt =
      hints.model_type == "opt" || (hints.model_type.empty() && is_fairseq_dictionary(vocabulary));
  if (is_fairseq_dictionary(vocabulary)) {
    for (int32_t id = 0; id < 4; ++id) vocabulary.mark_special(id);
  }
  const std::string_view end_token = is_opt ? "</s>" : "<|endoftext|>";
  if (!special.bos) special.bos = end_token;
  if (!special.eos) special.eos = end_token;
  std::vector<AddedToken> added = naming_file(vocab.path, [&] { return special.apply(vocabulary); });

  return naming_file(merges_file.path, [&] {
    MergeTable merges = read_merges(merges_file, vocabulary);
    TextPipeline pipeline;
    const bool is_qwen2 = hints.model_type == "qwen2", prefixed = special.add_prefix_space.value_or(false);
    const auto add_prefix = [&] { pipeline.add(PrependStep{" ", PrependStep::When::kUnlessThere}); };
    if (is_qwen2) pipeline.add(NormalizeStep{UnicodeForm::kNfc});
    if (prefixed && !is_qwen2) add_prefix();
    pipeline.add(SplitStep{SplitRegex::compile(is_qwen2 ? kQwen2Pattern : kGpt2Pattern, false)});
    if (prefixed && is_qwen2) add_prefix();  // Qwen2Tokenizer's is of each piece, GPT2Tokenizer's of the text
    BpeRules rules{.byte_level = true};
    if (special.unk) rules.unk = vocabulary.find(*special.unk);
    BpeModel model(vocabulary, std::move(pipeline), std::move(merges), rules);
    return assemble(vocab, std::move(vocabulary), std::move(added), std::move(model), {},
                    {.adds_bos = is_opt}, special, hints);
  });
}

}  // namespace spinfer
