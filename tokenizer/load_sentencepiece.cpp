// tokenizer.model of LLaMA 1 and 2: a SentencePiece ModelProto.
#include <fmt/format.h>

#include "tokenizer/model_proto.h"
#include "tokenizer/tokenizer_impl.h"

namespace spinfer {
namespace {

Vocabulary vocabulary_of(const ModelProto& proto) {
  Vocabulary vocabulary;
  int64_t id = 0;
  for (const ModelProtoPiece& piece : proto.pieces) {
    switch (piece.type) {
      case ModelProtoPiece::kUnknown:
      case ModelProtoPiece::kControl:
        vocabulary.add(id++, piece.piece, std::string(piece.piece), PieceKind::kSpecial);
        break;
      case ModelProtoPiece::kByte: {
        const auto byte = byte_of_fallback_piece(piece.piece);
        if (!byte)
          throw std::runtime_error(
              fmt::format("byte piece {} is not <0x00> ... <0xFF>", in_quotes(piece.piece)));
        vocabulary.add(id++, piece.piece, std::string(1, static_cast<char>(*byte)), PieceKind::kByte);
        break;
      }
      default:
        vocabulary.add(id++, piece.piece, metaspace_to_space(piece.piece), PieceKind::kText);
    }
  }
  return vocabulary;
}

// Hugging Face's LlamaTokenizer: with "legacy": false a space begins the text, else each segment of it, and
// add_prefix_space says whether there is one at all. Where the files say neither, the model's own
// add_dummy_prefix counts; those rules are of models that write a space as "▁" before words, as all of
// LLaMA's do.
PrefixSpace prefix_space(const SpecialTokenFiles& special, const ModelProto& proto) {
  const bool legacy = special.legacy.value_or(true);
  if (!proto.escape_whitespaces || proto.whitespace_is_suffix || (legacy && !special.add_prefix_space))
    return PrefixSpace::kByModel;
  if (!special.add_prefix_space.value_or(true)) return PrefixSpace::kNever;
  return legacy ? PrefixSpace::kEach : PrefixSpace::kFirst;
}

}  // namespace

std::unique_ptr<TokenizerImpl> load_sentencepiece(const TokenizerFile& file, const FileSet& files,
                                                  const TokenizerHints& hints) {
  const SpecialTokenFiles special = SpecialTokenFiles::read(files);
  return naming_file(file.path, [&] {
    const ModelProto proto = parse_model_proto(file.content);
    Vocabulary vocabulary = vocabulary_of(proto);
    const PrefixSpace prefix = prefix_space(special, proto);
    SentencePieceModel model(file.content, proto, prefix, vocabulary.pieces_stay_in_words());
    FileDefaults defaults{model.bos(), model.bos().has_value(), {}};
    if (const auto eos = model.eos()) defaults.eos = {*eos};
    std::vector<AddedToken> added = special.apply(vocabulary);
    const bool drops_space = prefix == PrefixSpace::kByModel
                                 ? proto.add_dummy_prefix || proto.remove_extra_whitespaces
                                 : prefix != PrefixSpace::kNever;
    const DecodeRules decode{drops_space, proto.remove_extra_whitespaces, InvalidBytes::kOnePerByte};
    return assemble(file, std::move(vocabulary), std::move(added), std::move(model), decode, defaults,
                    special, hints);
  });
}

}  // namespace spinfer
