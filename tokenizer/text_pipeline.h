// What a tokenizer.json does to text before BPE: normalizers, then splits. Steps run in order over a list of
// pieces that begins as the whole text.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "tokenizer/split_regex.h"
#include "tokenizer/vocabulary.h"

namespace spinfer {

enum class UnicodeForm { kNfc, kNfd, kNfkc, kNfkd };

struct NormalizeStep {
  UnicodeForm form;
};
struct ReplaceStep {
  std::string from, to;  ///< `from` is not empty
};
struct PrependStep {
  std::string text;
  enum class When {
    kAlways,           ///< every piece (Prepend normalizer)
    kUnlessThere,      ///< pieces that do not begin with it (Metaspace "always", ByteLevel add_prefix_space)
    kUnlessThereFirst  ///< the same, only at the start of the whole text (Metaspace "first")
  } when;
};
struct SplitStep {
  SplitRegex regex;
  bool keep_matches = true;
  bool keep_gaps = true;  ///< text between matches is a piece too
};
/// Splits before each metaspace that follows another character: "a▁▁b" → "a", "▁▁b".
struct WordSplitStep {};
using PipelineStep = std::variant<NormalizeStep, ReplaceStep, PrependStep, SplitStep, WordSplitStep>;

/// Pieces of a text; `storage` owns those that are not parts of the caller's text.
struct TextPieces {
  std::vector<std::string_view> pieces;
  std::deque<std::string> storage;
};

class TextPipeline {
 public:
  /// More steps are refused by the loader: each takes its time on every text.
  static constexpr size_t kMaxSteps = 64;
  size_t size() const { return steps_.size(); }

  template <typename Step>
  void add(Step step) {
    steps_.emplace_back(std::in_place_type<Step>, std::move(step));
  }
  /// `text` is valid UTF-8 and outlives the result. `at_start`: nothing of the user's text comes before it.
  /// Throws std::runtime_error where steps make the text absurdly long (64 times and 1 MiB) or take too long.
  TextPieces run(std::string_view text, bool at_start) const;
  /// How many times longer a text may be than its pieces together; nothing where a step drops text.
  std::optional<int64_t> most_shrinking() const;

 private:
  std::vector<PipelineStep> steps_;
};

}  // namespace spinfer
