// SentencePiece's ModelProto (tokenizer.model), read and checked before the library sees it: the library
// trusts its files, and damaged ones make it read out of bounds or abort.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace spinfer {

struct ModelProtoPiece {
  enum Type : uint8_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };
  std::string_view piece;
  Type type = kNormal;
};

/// Views into the bytes given to parse_model_proto.
struct ModelProto {
  enum ModelType : uint8_t { kUnigram = 1, kBpe = 2, kWord = 3, kChar = 4 };
  std::vector<ModelProtoPiece> pieces;
  ModelType model_type = kUnigram;
  bool byte_fallback = false;
  bool whitespace_is_suffix = false;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  std::string_view charsmap;  ///< precompiled normalization rules; empty for identity
};

/// Throws std::runtime_error (without a file name) for bytes that are no ModelProto, are truncated, or hold
/// pieces or rules outside what is documented here: at most kMaxPieces pieces of 1 ... kMaxPieceBytes bytes,
/// valid UTF-8 without NUL, each once, finite scores, one unknown piece, 256 byte pieces exactly if
/// byte_fallback is set.
ModelProto parse_model_proto(std::string_view bytes);

}  // namespace spinfer
