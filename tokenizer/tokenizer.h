// Text ↔ token ids. Includes nothing of the rest of spinfer; errors are std::runtime_error with one clear
// line.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace spinfer {

/// What config.json / generation_config.json say about special tokens; -1 where unknown.
struct TokenizerHints {
  std::string model_type;  ///< "llama", "opt", "qwen2", ... (config.json)
  int32_t vocab_size = 0;  ///< rows of the embedding; more pieces than rows is an error. 0 = do not check.
  int32_t bos_id = -1;
  std::vector<int32_t> eos_ids;
};

class FileSet;
class TokenizerImpl;

/// What a directory may hold, for messages: the first of these is taken.
inline constexpr std::string_view kTokenizerFiles =
    "tokenizer.json, tokenizer.model, vocab.json + merges.txt, gpt2-vocab.json + gpt2-merges.txt";

/// Immutable after construction; encode and decode are const and thread-safe.
///
/// Ids are those of Hugging Face's AutoTokenizer. Known, wanted differences: special tokens in a text are
/// ordinary text unless asked for, and are matched as written (no normalizer applied to them);
/// `clean_up_tokenization_spaces` is not applied, so that decode(encode(text)) == text; no EOS or separator
/// is put after a text.
class Tokenizer {
 public:
  /// Takes the first of kTokenizerFiles that `dir` holds, which is AutoTokenizer's order; tokenizer.model is
  /// SentencePiece's, or tiktoken-style ranks as LLaMA-3 ships. tokenizer_config.json, special_tokens_map.json
  /// and added_tokens.json beside it are read too: BOS and EOS from all; where the main file is not
  /// tokenizer.json, also added tokens, add_prefix_space and, of SentencePiece, "legacy" (absent: true, as
  /// transformers 4 has it).
  /// Throws std::runtime_error naming the file and what is wrong with it, or listing the files looked for.
  /// Files are read up to 64 MiB each, ids are below 2^20, pieces have at most 4096 bytes.
  static Tokenizer load(const std::filesystem::path& dir, const TokenizerHints& hints);
  /// The same from memory (tokenizer/file_set.h).
  static Tokenizer from_files(const FileSet& files, const TokenizerHints& hints);
  /// True if `dir` holds files `load` would try.
  static bool present(const std::filesystem::path& dir);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// `text` verbatim → ids. Ill-formed UTF-8 is encoded as U+FFFD, one per ill-formed sequence, never an
  /// error.
  ///
  /// `add_bos`: put BOS first if the tokenizer does so (adds_bos).
  ///
  /// `parse_special`: recognise special-token strings such as "<|eot_id|>" in `text` (chat templates);
  /// otherwise they are plain text, so user text cannot inject control tokens. Added tokens that are not
  /// special (a fine-tune's extra words) are always recognised, as in Hugging Face.
  ///
  /// Throws std::runtime_error for a text above 1 GiB (256 MiB with SentencePiece), and where a hostile
  /// tokenizer.json brings a split pattern that would not come to an end.
  std::vector<int32_t> encode(std::string_view text, bool add_bos, bool parse_special = false) const;

  /// A text with more bytes than this has more than `tokens` ids, as can be said without encoding it. Nothing
  /// where text may vanish: unknown characters, normalizers that drop some, added tokens that swallow white
  /// space.
  std::optional<int64_t> most_bytes(int64_t tokens) const;

  /// ids → text. Special tokens are dropped unless `keep_special`. Embedding rows without a piece (OPT's last
  /// 7, say) are no text. Ids outside the vocabulary and hints.vocab_size throw. Ill-formed UTF-8 becomes
  /// U+FFFD.
  std::string decode(std::span<const int32_t> ids, bool keep_special = false) const;

  /// The exact bytes a single id contributes in mid-text (may be part of a UTF-8 character); a special
  /// token's string.
  std::string piece_bytes(int32_t id) const;

  int32_t vocab_size() const;             ///< largest id of a piece + 1, special tokens included
  std::optional<int32_t> bos_id() const;  ///< the tokenizer files' BOS, else hints.bos_id
  bool adds_bos() const;  ///< encode(…, add_bos) puts bos_id first (not for GPT-2 and Qwen2)
  const std::vector<int32_t>& eos_ids() const;  ///< hints.eos_ids, else what the tokenizer files say
  bool is_special(int32_t id) const;
  /// Exact piece as the file writes it, or special-token string.
  std::optional<int32_t> id_of(std::string_view piece) const;

 private:
  friend class IncrementalDecoder;
  explicit Tokenizer(std::unique_ptr<TokenizerImpl> impl);
  std::unique_ptr<TokenizerImpl> impl_;
};

/// Streaming decode of a continuation: the concatenation of all returned pieces plus finish() equals the text
/// that the continuation adds to decode(prompt); no returned piece ends inside a UTF-8 character. If `prompt`
/// ends inside one, that character comes with the continuation.
class IncrementalDecoder {
 public:
  /// `prompt` gives the context (leading-space rules of SentencePiece); it is not returned. May be empty.
  IncrementalDecoder(const Tokenizer& tokenizer, std::span<const int32_t> prompt);
  /// Text that became complete with `id`; may be empty while a character is incomplete.
  std::string push(int32_t id);
  /// What is left, incomplete bytes replaced by U+FFFD.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  std::string pending_;  ///< bytes of an incomplete UTF-8 character
  bool at_start_;        ///< nothing but special tokens so far: a leading SentencePiece space is dropped
};

}  // namespace spinfer
