// The regular expressions that split text before BPE, matched with PCRE2 in Unicode mode.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

struct pcre2_real_code_8;

namespace spinfer {

class SplitRegex {
 public:
  /// `literal`: match the string itself. Throws std::runtime_error (without a file name) if the pattern is
  /// longer than 8 KiB or no regular expression.
  static SplitRegex compile(std::string_view pattern, bool literal);

  struct Match {
    size_t begin, end;  ///< byte offsets, begin < end
  };
  using Deadline = std::chrono::steady_clock::time_point;
  /// When splitting a text of so many bytes must be done, if it begins now: some hundred times what usual
  /// patterns take.
  static Deadline deadline(size_t text_bytes);
  /// All matches from left to right, empty ones skipped. `text` is valid UTF-8. A single match may take a
  /// bounded number of steps only (see the definition); std::runtime_error if it needs more, or if the
  /// deadline has passed.
  std::vector<Match> find_all(std::string_view text, Deadline deadline) const;

 private:
  struct FreeCode {
    void operator()(pcre2_real_code_8* code) const;
  };
  std::unique_ptr<pcre2_real_code_8, FreeCode> code_;
};

}  // namespace spinfer
