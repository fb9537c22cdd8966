// Stop strings in streamed text: found across token borders, with text that may begin one held back.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace spinfer {

/// Text goes in piece by piece; what comes out, put together, is the text before the first stop string that
/// became complete (of two that end at the same byte, the one that begins first). How the text is cut into
/// pieces does not matter for the result. The stop strings must not be empty.
class StopStrings {
 public:
  explicit StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  /// Takes more text and returns what can no longer be part of a stop string. After a stop, always "".
  std::string push(std::string_view piece);
  /// The text has ended: returns what was held back.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  size_t held_back() const;

  std::vector<std::string> stops_;
  std::string pending_;  // not returned yet: proper prefixes of stop strings after each push
  bool stopped_ = false;
};

}  // namespace spinfer
