#include "engine/stop_strings.h"

#include <algorithm>
#include <utility>

namespace spinfer {

std::string StopStrings::push(std::string_view piece) {
  if (stopped_) return {};
  pending_ += piece;
  size_t begin = std::string::npos, end = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t at = pending_.find(stop);
    if (at == std::string::npos) continue;
    if (at + stop.size() < end || (at + stop.size() == end && at < begin)) {
      begin = at;
      end = at + stop.size();
    }
  }
  stopped_ = begin != std::string::npos;
  std::string text = pending_.substr(0, stopped_ ? begin : pending_.size() - held_back());
  pending_.erase(0, stopped_ ? pending_.size() : text.size());
  return text;
}

std::string StopStrings::finish() {
  return std::exchange(pending_, {});
}

/// Length of the longest end of `pending_` that begins a stop string.
size_t StopStrings::held_back() const {
  size_t longest = 0;
  const std::string_view pending = pending_;
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, pending.size()); length > longest; --length) {
      if (pending.ends_with(std::string_view(stop).substr(0, length))) longest = length;
    }
  }
  return longest;
}

}  // namespace spinfer
