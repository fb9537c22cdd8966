// Stop strings in streamed text: found across token borders, with text that may begin one held back.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace spinfer {

/// Text goes in piece by piece; what comes out, put together, is the text before the first stop string that
/// became complete (of two that end at the same byte, the one that begins first). How the text is cut into
/// pieces does not matter for the result. The stop strings have 1 to 65535 bytes.
class StopStrings {
 public:
  explicit StopStrings(std::vector<std::string> stops);

  /// Takes more text and returns what can no longer be part of a stop string. After a stop, always "".
  std::string push(std::string_view piece);
  /// The text has ended: returns what was held back.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  /// Knuth, Morris and Pratt's: a byte takes constant time, whatever text and stop string are.
  class Matcher {
   public:
    explicit Matcher(std::string stop);
    /// The stop string's length if it is complete now, else 0. Not to be called again after that.
    size_t push(char c);
    /// Length of the longest end of the text that begins the stop string.
    size_t matched() const { return matched_; }

   private:
    std::string stop_;
    std::vector<uint16_t>
        borders_;  ///< [i]: length of the longest proper end of the first i bytes that begins it
    size_t matched_ = 0;
  };

  std::vector<Matcher> matchers_;
  std::string pending_;  // not returned yet: a proper prefix of a stop string after each push
  bool stopped_ = false;
};

}  // namespace spinfer
