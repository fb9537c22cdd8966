// Small tokenizers made in memory, for tests that need no assets and for damaging them piece by piece.
#pragma once

#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/file_set.h"
#include "tokenizer/tokenizer.h"

namespace spinfer::sample {

/// A byte-level tokenizer.json: ids 0 ... 255 are the bytes, then "he", "ll", "hell", "hello", " w" and " wo"
/// by merges, the special <|bos|> (262), put first, and <|eot|> (263), and the ordinary added token "spinfer"
/// (264).
nlohmann::json byte_level_json();
inline constexpr int32_t kBos = 262, kEot = 263, kSpinfer = 264;

/// A LLaMA-2 style tokenizer.json: <unk> <s> </s>, 256 byte pieces, "▁", letters and a few merges; prefix,
/// BOS.
nlohmann::json metaspace_json();

/// The pieces of the same model for SentencePiece, highest score first.
struct Piece {
  std::string text;
  float score = 0;
  int type = 1;  ///< as in ModelProto: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
};
std::vector<Piece> llama_pieces();

struct ProtoOptions {
  int model_type = 2;  ///< BPE
  bool byte_fallback = true;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = false;
  std::string charsmap;
};
/// The bytes of a ModelProto.
std::string model_proto(const std::vector<Piece>& pieces, const ProtoOptions& options = {});
/// One length-delimited protobuf field.
std::string proto_bytes(int field, std::string_view content);

/// Lines of base64 and rank: all bytes and a few pairs.
std::string ranks_file();

/// vocab.json and merges.txt with the 256 bytes and the merges of byte_level_json.
std::string vocab_json();
std::string merges_txt();

FileSet files(std::initializer_list<std::pair<std::string, std::string>> name_and_content);
Tokenizer load(std::initializer_list<std::pair<std::string, std::string>> name_and_content,
               const TokenizerHints& hints = {});
/// The message of the error that loading gives; "" if it loads.
std::string load_error(std::initializer_list<std::pair<std::string, std::string>> name_and_content,
                       const TokenizerHints& hints = {});

}  // namespace spinfer::sample
