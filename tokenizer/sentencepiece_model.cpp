#include "tokenizer/sentencepiece_model.h"

#include <fmt/format.h>
#include <sentencepiece_processor.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "tokenizer/piece_cache.h"

namespace spinfer {
namespace {

// A second normalizer_spec (field 3) is merged into the first: add_dummy_prefix, remove_extra_whitespaces and
// escape_whitespaces (fields 3, 4, 5) become false, so that the library takes words as they are.
constexpr std::string_view kWhitespaceAsIs{"\x1A\x06\x18\x00\x20\x00\x28\x00", 8};

// The same for add_dummy_prefix alone.
constexpr std::string_view kNoDummyPrefix{"\x1A\x02\x18\x00", 4}, kDummyPrefix{"\x1A\x02\x18\x01", 4};

// The library keeps positions in int and up to three bytes for each byte of text.
constexpr size_t kMaxTextBytes = size_t{256} << 20;

bool can_go_by_words(const ModelProto& proto) {
  const bool user_defined = std::any_of(proto.pieces.begin(), proto.pieces.end(), [](const auto& piece) {
    return piece.type == ModelProtoPiece::kUserDefined;
  });
  return proto.model_type == ModelProto::kBpe && proto.charsmap.empty() && proto.escape_whitespaces &&
         !proto.whitespace_is_suffix && !user_defined;
}

// Without leading spaces, runs of spaces as one, as the library's remove_extra_whitespaces does; trailing
// ones go later.
std::string collapse_spaces(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    if (c != ' ' || (!out.empty() && out.back() != ' ')) out += c;
  }
  return out;
}

}  // namespace

SentencePieceModel::SentencePieceModel(std::string_view bytes, const ModelProto& proto, PrefixSpace prefix,
                                       bool words)
    : processor_(std::make_unique<sentencepiece::SentencePieceProcessor>()),
      by_words_(words && can_go_by_words(proto)),
      prefix_(prefix),
      remove_extra_whitespaces_(proto.remove_extra_whitespaces),
      keeps_all_text_(by_words_ && proto.byte_fallback && !proto.remove_extra_whitespaces) {
  std::string model(bytes);
  const bool dummy_prefix =
      prefix == PrefixSpace::kEach || (prefix == PrefixSpace::kByModel && proto.add_dummy_prefix);
  model += by_words_ ? kWhitespaceAsIs : dummy_prefix ? kDummyPrefix : kNoDummyPrefix;
  if (by_words_) {
    to_words_.add(ReplaceStep{" ", std::string(kMetaspace)});
    if (dummy_prefix) to_words_.add(PrependStep{std::string(kMetaspace), PrependStep::When::kAlways});
    to_words_.add(WordSplitStep{});
  }
  try {
    const auto status = processor_->LoadFromSerializedProto(model);
    if (!status.ok()) throw std::runtime_error(fmt::format("is refused: {}", status.ToString()));
  } catch (const std::runtime_error&) {
    throw;
  } catch (const std::exception& e) {  // the library's trie builder has its own exception type
    throw std::runtime_error(fmt::format("is refused: {}", e.what()));
  }
}

SentencePieceModel::SentencePieceModel(SentencePieceModel&&) noexcept = default;
SentencePieceModel& SentencePieceModel::operator=(SentencePieceModel&&) noexcept = default;
SentencePieceModel::~SentencePieceModel() = default;

std::optional<int32_t> SentencePieceModel::bos() const {
  return processor_->bos_id() < 0 ? std::nullopt : std::optional<int32_t>(processor_->bos_id());
}

std::optional<int32_t> SentencePieceModel::eos() const {
  return processor_->eos_id() < 0 ? std::nullopt : std::optional<int32_t>(processor_->eos_id());
}

void SentencePieceModel::encode_whole(std::string_view text, std::vector<int32_t>& out) const {
  std::vector<int> ids;
  const auto status = processor_->Encode({text.data(), text.size()}, &ids);
  if (!status.ok())
    throw std::runtime_error(fmt::format("SentencePiece cannot encode: {}", status.ToString()));
  out.insert(out.end(), ids.begin(), ids.end());
}

void SentencePieceModel::encode_words(std::string_view text, std::vector<int32_t>& out) const {
  TextPieces words = to_words_.run(text, true);
  if (remove_extra_whitespaces_) {
    // Spaces at the end, the dummy prefix of an otherwise empty text included.
    while (!words.pieces.empty() && words.pieces.back().ends_with(kMetaspace)) {
      words.pieces.back().remove_suffix(kMetaspace.size());
      if (words.pieces.back().empty()) words.pieces.pop_back();
    }
  }
  PieceCache cache;
  for (const std::string_view word : words.pieces) {
    if (const auto* range = cache.find(word)) {
      const auto [begin, end] = *range;
      for (size_t i = begin; i < end; ++i) out.push_back(out[i]);
      continue;
    }
    const size_t begin = out.size();
    encode_whole(word, out);
    cache.insert(word, {begin, out.size()});
  }
}

// The space is written as a metaspace: remove_extra_whitespaces leaves that in place.
std::string SentencePieceModel::with_first_space(std::string_view text, bool at_start) const {
  const bool has_space = text.starts_with(' ');
  const bool wants_space = prefix_ == PrefixSpace::kFirst && at_start && !text.starts_with(kMetaspace);
  std::string out;
  if (has_space && remove_extra_whitespaces_) {
    out = kMetaspace;
    text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
  } else if (!has_space && wants_space) {
    out = kMetaspace;
  }
  return out.append(text);
}

void SentencePieceModel::encode(std::string_view text, bool at_start, std::vector<int32_t>& out) const {
  if (text.size() > kMaxTextBytes) {
    throw std::runtime_error(
        fmt::format("text of {} bytes, at most {} can be encoded", text.size(), kMaxTextBytes));
  }
  std::string spaced;
  if (prefix_ == PrefixSpace::kFirst || prefix_ == PrefixSpace::kNever)
    text = spaced = with_first_space(text, at_start);
  if (!by_words_) {
    encode_whole(text, out);
  } else if (remove_extra_whitespaces_) {
    encode_words(collapse_spaces(text), out);
  } else {
    encode_words(text, out);
  }
}

}  // namespace spinfer
