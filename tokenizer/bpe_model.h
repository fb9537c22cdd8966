// Byte-pair encoding, over bytes (GPT-2, OPT, LLaMA-3, Qwen2) or over characters with byte fallback
// (LLaMA-2's tokenizer.json).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "tokenizer/merge_table.h"
#include "tokenizer/text_pipeline.h"
#include "tokenizer/vocabulary.h"

namespace spinfer {

struct BpeRules {
  bool byte_level = false;          ///< initial symbols are bytes, not characters
  bool byte_fallback = false;       ///< a character without a piece becomes <0xXX> pieces
  bool fuse_unk = false;            ///< neighbouring unknown characters become one `unk`
  bool ignore_merges = false;       ///< a split piece that is in the vocabulary is taken whole
  std::optional<int32_t> unk = {};  ///< without it, what has no piece is dropped
};

class BpeModel {
 public:
  /// `vocabulary` is complete: kinds decide which pieces text can reach (special ones cannot).
  BpeModel(const Vocabulary& vocabulary, TextPipeline pipeline, MergeTable merges, BpeRules rules);

  /// Appends the ids of `text` (valid UTF-8). `at_start`: nothing of the user's text comes before it.
  void encode(std::string_view text, bool at_start, std::vector<int32_t>& out) const;
  /// How many times longer a text may be than what its ids stand for; nothing where text may vanish.
  std::optional<int64_t> most_shrinking() const;

 private:
  void append_unk(std::vector<int32_t>& symbols) const;
  void append_bytes(std::string_view piece, std::vector<int32_t>& symbols) const;
  void append_characters(std::string_view piece, std::vector<int32_t>& symbols) const;

  TextPipeline pipeline_;
  MergeTable merges_;
  BpeRules rules_;
  std::array<int32_t, 256> byte_ids_;  // -1 where there is no piece
  StringMap<int32_t> char_ids_;        // characters; every text piece with ignore_merges
};

}  // namespace spinfer
