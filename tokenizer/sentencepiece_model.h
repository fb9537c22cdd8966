// A SentencePiece model, run by the sentencepiece library.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/model_proto.h"
#include "tokenizer/text_pipeline.h"

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace spinfer {

/// Where a space is put before text.
enum class PrefixSpace {
  kByModel,  ///< before each segment if the model's add_dummy_prefix says so
  kEach,     ///< before each segment, one that begins with a space too
  kFirst,    ///< before what begins the whole text, unless that begins with a space
  kNever,
};

class SentencePieceModel {
 public:
  /// `proto` was parsed from `bytes`. `words`: text may be cut at word borders
  /// (Vocabulary::pieces_stay_in_words). Throws std::runtime_error (without a file name) if the library
  /// refuses it.
  SentencePieceModel(std::string_view bytes, const ModelProto& proto, PrefixSpace prefix, bool words);
  SentencePieceModel(SentencePieceModel&&) noexcept;
  SentencePieceModel& operator=(SentencePieceModel&&) noexcept;
  ~SentencePieceModel();

  /// Appends the ids of `text` (valid UTF-8), one segment. `at_start`: nothing of the user's text comes
  /// before it.
  void encode(std::string_view text, bool at_start, std::vector<int32_t>& out) const;

  bool keeps_all_text() const { return keeps_all_text_; }

  std::optional<int32_t> bos() const;
  std::optional<int32_t> eos() const;

 private:
  std::string with_first_space(std::string_view text, bool at_start) const;
  void encode_words(std::string_view text, std::vector<int32_t>& out) const;
  void encode_whole(std::string_view text, std::vector<int32_t>& out) const;

  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
  // White space is normalized here and the library gets one word at a time: 10x faster on text than one call,
  // since most words are cached, and without the library's ~100 bytes of bookkeeping per byte of text. Only
  // for models where the result is the same: BPE, identity normalization, no user-defined pieces, no piece
  // across a word border.
  bool by_words_;
  PrefixSpace prefix_;
  bool remove_extra_whitespaces_;
  bool keeps_all_text_;  ///< each byte of a text is in a piece
  TextPipeline to_words_;
};

}  // namespace spinfer
