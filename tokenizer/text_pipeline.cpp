#include "tokenizer/text_pipeline.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <stdexcept>

namespace spinfer {
namespace {

constexpr int64_t kMostShrinking = 1 << 20;  // where it says nothing any more

bool is_ascii(std::string_view text) {
  return std::none_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) >= 0x80; });
}

std::string normalized(std::string_view text, UnicodeForm form) {
  const bool compose = form == UnicodeForm::kNfc || form == UnicodeForm::kNfkc;
  const bool compatibility = form == UnicodeForm::kNfkc || form == UnicodeForm::kNfkd;
  const int options = UTF8PROC_STABLE | (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                      (compatibility ? UTF8PROC_COMPAT : 0);
  utf8proc_uint8_t* raw = nullptr;
  const auto length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &raw, static_cast<utf8proc_option_t>(options));
  if (length < 0) throw std::runtime_error(utf8proc_errmsg(length));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(raw, &std::free);
  return {reinterpret_cast<const char*>(raw), static_cast<size_t>(length)};
}

// A run's pieces, and what it may still take: each of a hostile file's steps could multiply the text.
class Run {
 public:
  explicit Run(std::string_view text)
      : bytes_left_((size_t{1} << 20) + 64 * text.size()), deadline_(SplitRegex::deadline(text.size())) {
    out.pieces.push_back(text);
  }
  TextPieces out;

  void replace(std::string_view& piece, std::string text) {
    check_room(text.size());
    bytes_left_ -= text.size();
    piece = out.storage.emplace_back(std::move(text));
  }
  void check_room(size_t bytes) const {
    if (bytes > bytes_left_) throw std::runtime_error("the tokenizer's steps make the text too long");
  }
  SplitRegex::Deadline deadline() const { return deadline_; }

 private:
  size_t bytes_left_;
  SplitRegex::Deadline deadline_;
};

std::string replaced(std::string_view text, const ReplaceStep& step, const Run& run) {
  std::string out;
  out.reserve(text.size() * 2);
  for (;;) {
    const size_t at = text.find(step.from);
    out += text.substr(0, at);
    if (at == std::string_view::npos) return out;
    out += step.to;
    run.check_room(out.size());
    text.remove_prefix(at + step.from.size());
  }
}

// One overload per step: replaces `run.out.pieces`.
void apply(const NormalizeStep& step, bool, Run& run) {
  for (auto& piece : run.out.pieces) {
    if (!is_ascii(piece)) run.replace(piece, normalized(piece, step.form));
  }
}

void apply(const ReplaceStep& step, bool, Run& run) {
  for (auto& piece : run.out.pieces) {
    if (piece.find(step.from) != std::string_view::npos) run.replace(piece, replaced(piece, step, run));
  }
}

void apply(const PrependStep& step, bool at_start, Run& run) {
  using When = PrependStep::When;
  for (size_t i = 0; i < run.out.pieces.size(); ++i) {
    auto& piece = run.out.pieces[i];
    if (step.when != When::kAlways && piece.starts_with(step.text)) continue;
    if (step.when == When::kUnlessThereFirst && !(at_start && i == 0)) continue;
    run.replace(piece, step.text + std::string(piece));
  }
}

void apply(const SplitStep& step, bool, Run& run) {
  std::vector<std::string_view> out;
  for (const std::string_view piece : run.out.pieces) {
    size_t from = 0;
    for (const auto& match : step.regex.find_all(piece, run.deadline())) {
      if (step.keep_gaps && match.begin > from) out.push_back(piece.substr(from, match.begin - from));
      if (step.keep_matches) out.push_back(piece.substr(match.begin, match.end - match.begin));
      from = match.end;
    }
    if (step.keep_gaps && from < piece.size()) out.push_back(piece.substr(from));
  }
  run.out.pieces = std::move(out);
}

void apply(const WordSplitStep&, bool, Run& run) {
  std::vector<std::string_view> out;
  for (std::string_view piece : run.out.pieces) {
    while (!piece.empty()) {
      size_t spaces = 0;
      while (piece.substr(spaces).starts_with(kMetaspace)) spaces += kMetaspace.size();
      const size_t end = std::min(piece.find(kMetaspace, spaces), piece.size());
      out.push_back(piece.substr(0, end));
      piece.remove_prefix(end);
    }
  }
  run.out.pieces = std::move(out);
}

}  // namespace

std::optional<int64_t> TextPipeline::most_shrinking() const {
  // A compatibility mapping makes at least one byte of at most four, and at most four characters compose.
  constexpr int64_t kNormalForm = 16;
  int64_t times = 1;
  for (const PipelineStep& step : steps_) {
    if (std::holds_alternative<NormalizeStep>(step)) times = std::min(times * kNormalForm, kMostShrinking);
    const auto* replace = std::get_if<ReplaceStep>(&step);
    const auto* split = std::get_if<SplitStep>(&step);
    if ((replace && replace->to.size() < replace->from.size()) ||
        (split && !(split->keep_matches && split->keep_gaps)))
      return std::nullopt;
  }
  return times;
}

TextPieces TextPipeline::run(std::string_view text, bool at_start) const {
  if (text.empty()) return {};
  Run run(text);
  for (const PipelineStep& step : steps_) {
    std::visit([&](const auto& s) { apply(s, at_start, run); }, step);
  }
  return std::move(run.out);
}

}  // namespace spinfer
