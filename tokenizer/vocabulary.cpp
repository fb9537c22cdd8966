#include "tokenizer/vocabulary.h"

#include <fmt/format.h>

#include <stdexcept>

#include "tokenizer/file_set.h"

namespace spinfer {

std::string metaspace_to_space(std::string_view piece) {
  std::string text;
  for (size_t at = 0; at < piece.size();) {
    if (piece.substr(at).starts_with(kMetaspace)) {
      text += ' ';
      at += kMetaspace.size();
    } else {
      text += piece[at++];
    }
  }
  return text;
}

std::optional<uint8_t> byte_of_fallback_piece(std::string_view piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece.back() != '>') return std::nullopt;
  uint8_t byte = 0;
  for (const char c : piece.substr(3, 2)) {
    const bool digit = c >= '0' && c <= '9';
    if (!digit && (c < 'A' || c > 'F')) return std::nullopt;
    byte = static_cast<uint8_t>(byte * 16 + (digit ? c - '0' : c - 'A' + 10));
  }
  return byte;
}

int32_t& Vocabulary::slot(int64_t id, std::string_view piece) {
  if (id < 0 || id >= kMaxPieces) {
    throw std::runtime_error(
        fmt::format("piece {} has id {}, legal are 0 ... {}", in_quotes(piece), id, kMaxPieces - 1));
  }
  if (piece.size() > kMaxPieceBytes) {
    throw std::runtime_error(fmt::format("piece {} has {} bytes, legal are 1 ... {}", in_quotes(piece),
                                         piece.size(), kMaxPieceBytes));
  }
  if (id >= size()) entry_of_id_.resize(id + 1, -1);
  return entry_of_id_[id];
}

void Vocabulary::add(int64_t id, std::string_view piece, std::string bytes, PieceKind kind) {
  int32_t& entry = slot(id, piece);
  if (entry >= 0) {
    throw std::runtime_error(fmt::format("pieces {} and {} have the same id {}",
                                         in_quotes(entries_[entry].piece), in_quotes(piece), id));
  }
  const auto [where, inserted] = ids_.try_emplace(std::string(piece), static_cast<int32_t>(id));
  if (!inserted) {
    throw std::runtime_error(
        fmt::format("piece {} is there twice, as id {} and {}", in_quotes(piece), where->second, id));
  }
  entry = static_cast<int32_t>(entries_.size());
  entries_.push_back({std::string(piece), std::move(bytes), kind});
}

void Vocabulary::add_or_rename(int64_t id, std::string_view content, PieceKind kind) {
  if (content.empty()) throw std::runtime_error(fmt::format("added token {} is an empty string", id));
  const int32_t at = slot(id, content);
  if (at < 0) return add(id, content, std::string(content), kind);
  Entry& entry = entries_[at];
  if (entry.piece != content) {
    if (entry.kind != PieceKind::kSpecial || find(content)) {
      throw std::runtime_error(fmt::format("added token {} has id {}, which is piece {}", in_quotes(content),
                                           id, in_quotes(entry.piece)));
    }
    ids_.erase(entry.piece);
    ids_.emplace(content, static_cast<int32_t>(id));
  }
  entry = {std::string(content), std::string(content), kind};
}

bool Vocabulary::pieces_stay_in_words() const {
  const auto metaspace = find(kMetaspace);
  if (!metaspace || kind(*metaspace) != PieceKind::kText) return false;
  for (const Entry& entry : entries_) {
    std::string_view piece = entry.piece;
    while (piece.starts_with(kMetaspace)) piece.remove_prefix(kMetaspace.size());
    if (entry.kind == PieceKind::kText && piece.find(kMetaspace) != std::string_view::npos) return false;
  }
  return true;
}

std::optional<int32_t> Vocabulary::find(std::string_view piece) const {
  const auto it = ids_.find(piece);
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

}  // namespace spinfer
