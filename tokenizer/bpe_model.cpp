#include "tokenizer/bpe_model.h"

#include <algorithm>

#include "tokenizer/piece_cache.h"
#include "tokenizer/utf8.h"

namespace spinfer {
BpeModel::BpeModel(const Vocabulary& vocabulary, TextPipeline pipeline, MergeTable merges, BpeRules rules)
    : pipeline_(std::move(pipeline)), merges_(std::move(merges)), rules_(rules) {
  byte_ids_.fill(-1);
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    const std::string_view bytes = vocabulary.bytes(id);
    const PieceKind kind = vocabulary.kind(id);
    const bool is_byte_symbol = rules_.byte_level ? kind == PieceKind::kText : kind == PieceKind::kByte;
    if (is_byte_symbol && bytes.size() == 1) byte_ids_[static_cast<uint8_t>(bytes[0])] = id;
    if (kind != PieceKind::kText) continue;
    const std::string_view text = rules_.byte_level ? bytes : vocabulary.piece(id);
    if (text.empty()) continue;
    const bool is_char = !rules_.byte_level && first_char(text).length == text.size();
    if (is_char || rules_.ignore_merges) char_ids_.try_emplace(std::string(text), id);
  }
  // Short pieces, so that the cache in encode() works.
  if (!rules_.byte_level && vocabulary.pieces_stay_in_words()) pipeline_.add(WordSplitStep{});
}

void BpeModel::append_unk(std::vector<int32_t>& symbols) const {
  if (!rules_.unk || (rules_.fuse_unk && !symbols.empty() && symbols.back() == *rules_.unk)) return;
  symbols.push_back(*rules_.unk);
}

void BpeModel::append_bytes(std::string_view piece, std::vector<int32_t>& symbols) const {
  for (const char c : piece) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(c)];
    if (id >= 0) {
      symbols.push_back(id);
    } else {
      append_unk(symbols);
    }
  }
}

void BpeModel::append_characters(std::string_view piece, std::vector<int32_t>& symbols) const {
  const auto has_piece = [&](char byte) { return byte_ids_[static_cast<uint8_t>(byte)] >= 0; };
  while (!piece.empty()) {
    const std::string_view character = piece.substr(0, first_char(piece).length);
    piece.remove_prefix(character.size());
    const auto it = char_ids_.find(character);
    if (it != char_ids_.end()) {
      symbols.push_back(it->second);
    } else if (rules_.byte_fallback && std::all_of(character.begin(), character.end(), has_piece)) {
      append_bytes(character, symbols);
    } else {
      append_unk(symbols);
    }
  }
}

std::optional<int64_t> BpeModel::most_shrinking() const {
  const bool all_bytes = std::ranges::all_of(byte_ids_, [](int32_t id) { return id >= 0; });
  return all_bytes && (rules_.byte_level || rules_.byte_fallback) ? pipeline_.most_shrinking() : std::nullopt;
}

void BpeModel::encode(std::string_view text, bool at_start, std::vector<int32_t>& out) const {
  const TextPieces pieces = pipeline_.run(text, at_start);
  PieceCache cache;
  Merger merger(merges_);
  std::vector<int32_t> symbols;
  for (const std::string_view piece : pieces.pieces) {
    if (const auto* range = cache.find(piece)) {
      const auto [begin, end] = *range;
      for (size_t i = begin; i < end; ++i) out.push_back(out[i]);
      continue;
    }
    const size_t begin = out.size();
    const auto whole = rules_.ignore_merges ? char_ids_.find(piece) : char_ids_.end();
    if (whole != char_ids_.end()) {
      out.push_back(whole->second);
    } else {
      symbols.clear();
      rules_.byte_level ? append_bytes(piece, symbols) : append_characters(piece, symbols);
      merger.merge(symbols, out);
    }
    cache.insert(piece, {begin, out.size()});
  }
}

}  // namespace spinfer
