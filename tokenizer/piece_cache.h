// Ids of the pieces met in one call of encode(): text repeats its words, so most are encoded only once.
#pragma once

#include <cstddef>
#include <string_view>
#include <unordered_map>

namespace spinfer {

class PieceCache {
 public:
  struct Range {
    size_t begin, end;  ///< where in the call's output the ids of the piece are
  };
  /// nullptr if `piece` was not met yet.
  const Range* find(std::string_view piece) const {
    const auto it = ranges_.find(piece);
    return it == ranges_.end() ? nullptr : &it->second;
  }
  /// `piece` must stay where it is as long as the cache lives.
  void insert(std::string_view piece, Range range) {
    if (piece.size() <= kMaxBytes && ranges_.size() < kMaxEntries) ranges_.try_emplace(piece, range);
  }

 private:
  static constexpr size_t kMaxBytes = 64;         // longer pieces hardly repeat
  static constexpr size_t kMaxEntries = 1 << 18;  // bounds memory at about 20 MB
  std::unordered_map<std::string_view, Range> ranges_;
};

}  // namespace spinfer
