// Checks SentencePiece's precompiled normalization rules, which the library follows without bounds checks.
#pragma once

#include <string_view>

namespace spinfer {

/// `charsmap`: u32 trie bytes, a darts-clone double array, NUL-terminated replacement strings. Throws
/// std::runtime_error (without a file name) if following it could leave it, if rules nest deeper than the
/// library's buffer of 32 matches, replace or insert more than 128 bytes, or if it is larger than 4 MiB (the
/// largest of the library's own has 320 KB).
void check_charsmap(std::string_view charsmap);

}  // namespace spinfer
