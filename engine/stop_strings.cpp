#include "engine/stop_strings.h"

#include <algorithm>
#include <utility>

namespace spinfer {

StopStrings::Matcher::Matcher(std::string stop) : stop_(std::move(stop)), borders_(stop_.size() + 1) {
  for (size_t i = 1; i < stop_.size(); ++i) {
    size_t border = borders_[i];
    while (border > 0 && stop_[i] != stop_[border]) border = borders_[border];
    borders_[i + 1] = uint16_t(border + (stop_[i] == stop_[border]));
  }
}

size_t StopStrings::Matcher::push(char c) {
  while (matched_ > 0 && stop_[matched_] != c) matched_ = borders_[matched_];
  matched_ += stop_[matched_] == c;
  return matched_ == stop_.size() ? matched_ : 0;
}

StopStrings::StopStrings(std::vector<std::string> stops) {
  for (std::string& stop : stops) matchers_.emplace_back(std::move(stop));
}

std::string StopStrings::push(std::string_view piece) {
  if (stopped_) return {};
  size_t held = 0;
  for (const char c : piece) {
    pending_ += c;
    size_t complete = 0;
    for (Matcher& matcher : matchers_) complete = std::max(complete, matcher.push(c));
    if (complete == 0) continue;
    stopped_ = true;
    pending_.resize(pending_.size() - complete);
    return std::exchange(pending_, {});
  }
  for (const Matcher& matcher : matchers_) held = std::max(held, matcher.matched());
  std::string text = pending_.substr(0, pending_.size() - held);
  pending_.erase(0, text.size());
  return text;
}

std::string StopStrings::finish() {
  return std::exchange(pending_, {});
}

}  // namespace spinfer
