// What a Tokenizer consists of, and the loaders that make it, one per file format.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe_model.h"
#include "tokenizer/file_set.h"
#include "tokenizer/sentencepiece_model.h"
#include "tokenizer/special_token_files.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"
#include "tokenizer/vocabulary.h"

namespace spinfer {

struct DecodeRules {
  bool drop_first_space = false;  ///< the space that encoding put before the text
  bool drop_all_spaces =
      false;  ///< with drop_first_space: each piece that is only a space, until there is text
  InvalidBytes invalid_bytes = InvalidBytes::kOnePerSequence;
};

class TokenizerImpl {
 public:
  using Model = std::variant<BpeModel, SentencePieceModel>;

  /// Appends the ids of `text`, which is one segment between added tokens.
  void encode_segment(std::string_view text, bool at_start, std::vector<int32_t>& out) const;
  /// Bytes that `id` adds after what was decoded before. `at_start`: nothing of the text was decoded yet;
  /// updated. Throws std::runtime_error for an id outside the vocabulary.
  std::string_view decoded_bytes(int32_t id, bool keep_special, bool& at_start) const;

  Vocabulary vocabulary;
  AddedTokens added;
  Model model;
  DecodeRules decode;
  int32_t rows = 0;  ///< legal ids are below this: the pieces, and rows of the embedding that have none
  std::optional<int32_t> bos;
  bool adds_bos = false;
  std::vector<int32_t> eos;
  /// Bytes of text that one id can stand for; nothing where there is no limit.
  std::optional<int64_t> most_bytes_per_id;
};

/// What the main file of a tokenizer says about BOS and EOS.
struct FileDefaults {
  std::optional<int32_t> bos = {};
  bool adds_bos = false;
  std::vector<int32_t> eos = {};
};

/// Puts the parts together and settles BOS and EOS: tokenizer_config.json's add_bos_token before `defaults`;
/// the main file's BOS before bos_token before hints.bos_id; hints.eos_ids before eos_token before
/// `defaults`. Throws naming `file` if there are more pieces than hints.vocab_size.
std::unique_ptr<TokenizerImpl> assemble(const TokenizerFile& file, Vocabulary vocabulary,
                                        std::vector<AddedToken> added, TokenizerImpl::Model model,
                                        DecodeRules decode, const FileDefaults& defaults,
                                        const SpecialTokenFiles& special, const TokenizerHints& hints);

/// Adds the merge `left` + `right`, whose rank is its place in the file. Throws (without a file name) if one
/// of the two or their joint piece is not in the vocabulary. Merges that would make a special token or a byte
/// piece are left out: text must not reach those.
void add_merge(const Vocabulary& vocabulary, uint32_t rank, std::string_view left, std::string_view right,
               MergeTable& table);

/// The loaders throw std::runtime_error naming the file at fault.
std::unique_ptr<TokenizerImpl> load_tokenizer_json(const TokenizerFile& file, const FileSet& files,
                                                   const TokenizerHints& hints);
std::unique_ptr<TokenizerImpl> load_sentencepiece(const TokenizerFile& file, const FileSet& files,
                                                  const TokenizerHints& hints);
/// True for tiktoken-style ranks: lines of base64, space, rank.
bool is_ranks_file(std::string_view content);
std::unique_ptr<TokenizerImpl> load_ranks(const TokenizerFile& file, const FileSet& files,
                                          const TokenizerHints& hints);
std::unique_ptr<TokenizerImpl> load_vocab_merges(const TokenizerFile& vocab, const TokenizerFile& merges,
                                                 const FileSet& files, const TokenizerHints& hints);

}  // namespace spinfer
