// The pieces of a tokenizer: id → bytes and kind, piece string → id.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace spinfer {

inline constexpr std::string_view kMetaspace = "\xE2\x96\x81";  ///< U+2581, how SentencePiece writes a space

/// Ids are below this (the largest vocabularies have 262,144 pieces), so a hostile id cannot cause a huge
/// allocation.
inline constexpr int64_t kMaxPieces = int64_t{1} << 20;
/// Longest piece in bytes (the longest real ones have a few hundred).
inline constexpr size_t kMaxPieceBytes = 4096;

/// `piece` with each metaspace as a space.
std::string metaspace_to_space(std::string_view piece);
/// 0x0A for "<0x0A>", nothing for what is no byte-fallback piece.
std::optional<uint8_t> byte_of_fallback_piece(std::string_view piece);

enum class PieceKind : uint8_t {
  kAbsent,   ///< a gap in the ids
  kText,     ///< an ordinary piece
  kByte,     ///< a byte-fallback piece such as <0x0A>; never matched by its name
  kSpecial,  ///< a control token: dropped by decode, found in text only when asked
};

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view s) const { return std::hash<std::string_view>{}(s); }
};
template <typename T>
using StringMap = std::unordered_map<std::string, T, StringHash, std::equal_to<>>;

class Vocabulary {
 public:
  /// `piece` as the file writes it, `bytes` the text it stands for. Throws std::runtime_error (without a file
  /// name) for an id outside [0, kMaxPieces), a piece longer than kMaxPieceBytes, an id or a piece that is
  /// there already.
  void add(int64_t id, std::string_view piece, std::string bytes, PieceKind kind);
  /// An added token: new, or an existing piece of that name made `kind`, or a special token given another
  /// name.
  void add_or_rename(int64_t id, std::string_view content, PieceKind kind);
  void mark_special(int32_t id) { entries_[entry_of_id_[id]].kind = PieceKind::kSpecial; }

  /// True if the metaspace is a piece and no text piece has one after another character, as in LLaMA's
  /// vocabularies. Then no merge crosses the place before such a metaspace, and words can be encoded one by
  /// one with the same result.
  bool pieces_stay_in_words() const;

  int32_t size() const { return static_cast<int32_t>(entry_of_id_.size()); }  ///< largest id + 1
  std::optional<int32_t> find(std::string_view piece) const;
  PieceKind kind(int32_t id) const {
    return entry_of_id_[id] < 0 ? PieceKind::kAbsent : entries_[entry_of_id_[id]].kind;
  }
  /// Empty for kAbsent.
  std::string_view piece(int32_t id) const {
    return entry_of_id_[id] < 0 ? std::string_view() : entries_[entry_of_id_[id]].piece;
  }
  std::string_view bytes(int32_t id) const {
    return entry_of_id_[id] < 0 ? std::string_view() : entries_[entry_of_id_[id]].bytes;
  }

 private:
  struct Entry {
    std::string piece;
    std::string bytes;
    PieceKind kind;
  };
  int32_t& slot(int64_t id, std::string_view piece);

  // A gap costs four bytes, so that a file with one absurd id costs four megabytes.
  std::vector<int32_t> entry_of_id_;  // -1: absent
  std::vector<Entry> entries_;
  StringMap<int32_t> ids_;
};

}  // namespace spinfer
