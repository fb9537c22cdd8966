#include "tokenizer/added_tokens.h"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <tuple>

#include "tokenizer/utf8.h"

namespace spinfer {
namespace {

uint8_t byte_at(std::string_view text, size_t at) {
  return static_cast<uint8_t>(text[at]);
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  const auto key = [](const AddedToken& t) { return std::tie(t.content, t.special); };
  std::stable_sort(tokens_.begin(), tokens_.end(),
                   [&](const auto& a, const auto& b) { return key(a) < key(b); });
  const auto same = [&](const auto& a, const auto& b) { return key(a) == key(b); };
  tokens_.erase(std::unique(tokens_.begin(), tokens_.end(), same), tokens_.end());
  for (const AddedToken& token : tokens_) ++first_byte_[byte_at(token.content, 0) + 1u];
  std::partial_sum(first_byte_.begin(), first_byte_.end(), first_byte_.begin());
}

const AddedToken* AddedTokens::match_at(std::string_view text, bool parse_special) const {
  const AddedToken* longest = nullptr;
  const uint8_t first = byte_at(text, 0);
  // The tokens that share `length` bytes with the text, those that have no more of them first. Narrowed byte
  // by byte: time does not grow with the number of tokens that begin alike.
  auto begin = tokens_.begin() + static_cast<std::ptrdiff_t>(first_byte_[first]);
  auto end = tokens_.begin() + static_cast<std::ptrdiff_t>(first_byte_[first + 1u]);
  for (size_t length = 1; begin != end; ++length) {
    for (; begin != end && begin->content.size() == length; ++begin) {
      if (parse_special || !begin->special) longest = &*begin;
    }
    if (length == text.size()) break;
    const uint8_t next = byte_at(text, length);
    begin =
        std::partition_point(begin, end, [&](const auto& t) { return byte_at(t.content, length) < next; });
    end = std::partition_point(begin, end, [&](const auto& t) { return byte_at(t.content, length) == next; });
  }
  return longest;
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
    if (token->lstrip) before = strip_white_space(before, false, true, WhiteSpace::kUnicode);
    if (!before.empty()) segments.push_back({before, nullptr});
    segments.push_back({text.substr(at, token->content.size()), token});
    at += token->content.size();
    if (token->rstrip)
      at = text.size() - strip_white_space(text.substr(at), true, false, WhiteSpace::kUnicode).size();
    from = at;
  }
  if (from < text.size()) segments.push_back({text.substr(from), nullptr});
  return segments;
}

}  // namespace spinfer
