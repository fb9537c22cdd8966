// UTF-8 validation and replacement, as Unicode table 3-7 and section 3.9 (maximal subparts) define them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace spinfer {

inline constexpr std::string_view kReplacementChar = "\xEF\xBF\xBD";  // U+FFFD

/// How many U+FFFD stand for an ill-formed sequence.
enum class InvalidBytes {
  kOnePerSequence,  ///< one per maximal subpart: Python's and Rust's "replace", what byte-level BPE decoders
                    ///< do
  kOnePerByte,      ///< one per byte: what SentencePiece does with byte pieces
};

struct Utf8Char {
  enum Kind { kValid, kInvalid, kIncomplete } kind;
  size_t length;  ///< bytes of the character, of the ill-formed maximal subpart, or of the incomplete rest
};

/// The first character of `text`, which is not empty. kIncomplete: more bytes could still make it valid.
Utf8Char first_char(std::string_view text);

bool is_valid_utf8(std::string_view text);

/// The last character of `text`, which is not empty and valid.
std::string_view last_char(std::string_view text);

enum class WhiteSpace {
  kUnicode,  ///< Unicode's White_Space property, which is \s of Hugging Face's regular expressions
  kPython,   ///< what str.isspace says: the same and U+001C ... U+001F
};

/// Of one character.
bool is_white_space(std::string_view character, WhiteSpace kind);

/// `text` (valid) without the white space at its start (`left`) and end (`right`).
std::string_view strip_white_space(std::string_view text, bool left, bool right, WhiteSpace kind);

/// Characters that begin in `text`: of one in several pieces the first piece has it.
int64_t count_chars(std::string_view text);

/// `text` with ill-formed sequences replaced, one U+FFFD per maximal subpart.
std::string replace_invalid_utf8(std::string_view text);

/// Appends `more` to `pending` and moves everything complete to `out`, ill-formed bytes replaced. At most
/// three bytes of an incomplete character stay in `pending`.
void take_complete_chars(std::string& pending, std::string_view more, InvalidBytes mode, std::string& out);

/// No more bytes will come: what `pending` holds is ill-formed. Leaves it empty.
void flush_incomplete_char(std::string& pending, InvalidBytes mode, std::string& out);

}  // namespace spinfer
