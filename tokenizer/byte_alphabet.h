// GPT-2's byte alphabet: vocab.json and tokenizer.json write each byte as one printable Unicode character
// (Radford et al. 2019, bytes_to_unicode).
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace spinfer {

/// The UTF-8 string that stands for `byte`.
std::string byte_alphabet_char(unsigned char byte);

/// The bytes a piece stands for, or nothing if a character is not of the alphabet.
std::optional<std::string> bytes_of_piece(std::string_view piece);

}  // namespace spinfer
