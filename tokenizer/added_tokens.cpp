#include "tokenizer/added_tokens.h"

#include <algorithm>

namespace spinfer {
namespace {

constexpr std::string_view kWhiteSpace = " \t\n\v\f\r";

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::stable_sort(tokens_.begin(), tokens_.end(),
                   [](const auto& a, const auto& b) { return a.content.size() > b.content.size(); });
  for (uint32_t i = 0; i < tokens_.size(); ++i) {
    by_first_byte_[static_cast<uint8_t>(tokens_[i].content[0])].push_back(i);
  }
}

const AddedToken* AddedTokens::match_at(std::string_view text, bool parse_special) const {
  for (const uint32_t i : by_first_byte_[static_cast<uint8_t>(text[0])]) {
    const AddedToken& token = tokens_[i];
    if ((parse_special || !token.special) && text.starts_with(token.content)) return &token;
  }
  return nullptr;
}

std::vector<AddedTokens::Segment> AddedTokens::split(std::string_view text, bool parse_special) const {
  std::vector<Segment> segments;
  size_t from = 0;  // where the text not yet in a segment begins
  for (size_t at = 0; at < text.size();) {
    const AddedToken* token = match_at(text.substr(at), parse_special);
    if (token == nullptr) {
      ++at;
      continue;
    }
    std::string_view before = text.substr(from, at - from);
    if (token->lstrip) before = before.substr(0, before.find_last_not_of(kWhiteSpace) + 1);
    if (!before.empty()) segments.push_back({before, nullptr});
    segments.push_back({text.substr(at, token->content.size()), token});
    at += token->content.size();
    if (token->rstrip) at = std::min(text.find_first_not_of(kWhiteSpace, at), text.size());
    from = at;
  }
  if (from < text.size()) segments.push_back({text.substr(from), nullptr});
  return segments;
}

}  // namespace spinfer
