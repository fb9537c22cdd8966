#include "tokenizer/text_pipeline.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <stdexcept>

namespace spinfer {
namespace {

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

std::string replaced(std::string_view text, const ReplaceStep& step) {
  std::string out;
  out.reserve(text.size() * 2);
  for (;;) {
    const size_t at = text.find(step.from);
    out += text.substr(0, at);
    if (at == std::string_view::npos) return out;
    out += step.to;
    text.remove_prefix(at + step.from.size());
  }
}

// One overload per step: replaces `in.pieces`.
void apply(const NormalizeStep& step, bool, TextPieces& in) {
  for (auto& piece : in.pieces) {
    if (!is_ascii(piece)) piece = in.storage.emplace_back(normalized(piece, step.form));
  }
}

void apply(const ReplaceStep& step, bool, TextPieces& in) {
  for (auto& piece : in.pieces) {
    if (piece.find(step.from) != std::string_view::npos)
      piece = in.storage.emplace_back(replaced(piece, step));
  }
}

void apply(const PrependStep& step, bool at_start, TextPieces& in) {
  using When = PrependStep::When;
  for (size_t i = 0; i < in.pieces.size(); ++i) {
    if (step.when != When::kAlways && in.pieces[i].starts_with(step.text)) continue;
    if (step.when == When::kUnlessThereFirst && !(at_start && i == 0)) continue;
    in.pieces[i] = in.storage.emplace_back(step.text + std::string(in.pieces[i]));
  }
}

void apply(const SplitStep& step, bool, TextPieces& in) {
  std::vector<std::string_view> out;
  for (const std::string_view piece : in.pieces) {
    size_t from = 0;
    for (const auto& match : step.regex.find_all(piece)) {
      if (step.keep_gaps && match.begin > from) out.push_back(piece.substr(from, match.begin - from));
      if (step.keep_matches) out.push_back(piece.substr(match.begin, match.end - match.begin));
      from = match.end;
    }
    if (step.keep_gaps && from < piece.size()) out.push_back(piece.substr(from));
  }
  in.pieces = std::move(out);
}

void apply(const WordSplitStep&, bool, TextPieces& in) {
  std::vector<std::string_view> out;
  for (std::string_view piece : in.pieces) {
    while (!piece.empty()) {
      size_t spaces = 0;
      while (piece.substr(spaces).starts_with(kMetaspace)) spaces += kMetaspace.size();
      const size_t end = std::min(piece.find(kMetaspace, spaces), piece.size());
      out.push_back(piece.substr(0, end));
      piece.remove_prefix(end);
    }
  }
  in.pieces = std::move(out);
}

}  // namespace

TextPieces TextPipeline::run(std::string_view text, bool at_start) const {
  TextPieces result;
  if (text.empty()) return result;
  result.pieces.push_back(text);
  for (const PipelineStep& step : steps_) {
    std::visit([&](const auto& s) { apply(s, at_start, result); }, step);
  }
  return result;
}

}  // namespace spinfer
