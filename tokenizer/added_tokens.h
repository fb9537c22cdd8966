// Added tokens: strings that are one id wherever they stand in a text, found before the model sees it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace spinfer {

struct AddedToken {
  int32_t id;
  std::string content;   ///< not empty
  bool special = false;  ///< a control token: found only when special tokens are asked for
  bool lstrip = false;   ///< swallows white space (Unicode's) before it
  bool rstrip = false;   ///< swallows white space after it
};

class AddedTokens {
 public:
  explicit AddedTokens(std::vector<AddedToken> tokens);

  struct Segment {
    std::string_view text;  ///< text for the model, or the token's occurrence
    const AddedToken* token = nullptr;
  };
  /// Cuts `text` at its added tokens, leftmost first, the longest where several begin at one place. Without
  /// `parse_special`, special ones are ordinary text. No segment is empty.
  std::vector<Segment> split(std::string_view text, bool parse_special) const;

 private:
  const AddedToken* match_at(std::string_view text, bool parse_special) const;

  std::vector<AddedToken> tokens_;           // by content, bytes unsigned
  std::array<size_t, 257> first_byte_ = {};  // tokens_[first_byte_[b], first_byte_[b + 1]) begin with byte b
};

}  // namespace spinfer
