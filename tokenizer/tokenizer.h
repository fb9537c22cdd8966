// Text ↔ token ids. Includes nothing of the rest of spinfer; errors are std::runtime_error with one clear line.
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
  std::string model_type;       ///< "llama", "opt", "qwen2", ... (config.json)
  int32_t vocab_size = 0;       ///< rows of the embedding; more pieces than rows is an error. 0 = do not check.
  int32_t bos_id = -1;
  std::vector<int32_t> eos_ids;
};

class TokenizerImpl;

/// Immutable after construction; encode and decode are const and thread-safe.
class Tokenizer {
 public:
  /// Finds tokenizer.model (SentencePiece, or tiktoken-style ranks as LLaMA-3 ships), tokenizer.json, or
  /// vocab.json + merges.txt (also gpt2-vocab.json + gpt2-merges.txt) in `dir`.
  /// Throws std::runtime_error naming the file and what is wrong with it, or listing the files looked for.
  static Tokenizer load(const std::filesystem::path& dir, const TokenizerHints& hints);
  /// True if `dir` holds files `load` would try.
  static bool present(const std::filesystem::path& dir);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// `text` verbatim → ids. Invalid UTF-8 is encoded byte by byte (byte fallback) or as U+FFFD, never an error.
  /// `add_bos`: put the model's BOS first where the model has one (OPT: </s>, id 2).
  /// `parse_special`: recognise special-token strings such as "<|eot_id|>" in `text` (chat templates);
  /// otherwise they are plain text, so user text cannot inject control tokens.
  std::vector<int32_t> encode(std::string_view text, bool add_bos, bool parse_special = false) const;

  /// ids → text. Special tokens are dropped unless `keep_special`. Ids outside the vocabulary throw.
  std::string decode(std::span<const int32_t> ids, bool keep_special = false) const;

  /// The exact bytes a single id contributes in mid-text (may be part of a UTF-8 character).
  std::string piece_bytes(int32_t id) const;

  int32_t vocab_size() const;                     ///< number of pieces, special tokens included
  std::optional<int32_t> bos_id() const;
  const std::vector<int32_t>& eos_ids() const;    ///< hints.eos_ids, else what the tokenizer files say
  bool is_special(int32_t id) const;
  std::optional<int32_t> id_of(std::string_view piece) const;  ///< exact piece or special-token string

 private:
  friend class IncrementalDecoder;
  explicit Tokenizer(std::unique_ptr<TokenizerImpl> impl);
  std::unique_ptr<TokenizerImpl> impl_;
};

/// Streaming decode of a continuation: the concatenation of all returned pieces plus finish() equals the text that the
/// continuation adds to decode(prompt); no returned piece ends inside a UTF-8 character.
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
  std::string pending_;   ///< bytes of an incomplete UTF-8 character
  bool at_start_;         ///< nothing but special tokens so far: a leading SentencePiece space is dropped
};

}  // namespace spinfer
