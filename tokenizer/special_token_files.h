// tokenizer_config.json, special_tokens_map.json and added_tokens.json: which tokens are special, whether
// text begins with BOS, and where a space is put before it. All three are optional.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tokenizer/added_tokens.h"
#include "tokenizer/file_set.h"
#include "tokenizer/vocabulary.h"

namespace spinfer {

struct SpecialTokenFiles {
  std::optional<std::string> bos, eos, unk, pad;  ///< token strings
  bool lists_bos = false, lists_eos = false;  ///< the key is there; as null or "" it says that there is none
  std::optional<bool> add_bos;                ///< add_bos_token
  std::optional<bool> add_prefix_space;       ///< a space before the text
  std::optional<bool> legacy;     ///< LLaMA's: that space is before each text between added tokens
  std::vector<AddedToken> added;  ///< added_tokens_decoder and added_tokens.json; ids not checked yet

  /// Throws std::runtime_error naming the file and the member that is wrong.
  static SpecialTokenFiles read(const FileSet& files);
  /// Puts the added tokens into `vocabulary`, makes bos, eos, unk and pad special there, and returns all
  /// added and special tokens of it. For tokenizers whose main file does not list them.
  std::vector<AddedToken> apply(Vocabulary& vocabulary) const;
};

class JsonObject;
/// Reads one entry of added_tokens or added_tokens_decoder. Throws for single_word tokens, which are not
/// supported.
AddedToken read_added_token(const JsonObject& entry, int64_t id);

}  // namespace spinfer
