#include "tokenizer/model_proto.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <stdexcept>
#include <unordered_set>

#include "tokenizer/charsmap_check.h"
#include "tokenizer/file_set.h"
#include "tokenizer/utf8.h"
#include "tokenizer/vocabulary.h"

namespace spinfer {
namespace {

// The library matches user-defined pieces with a buffer of 64 nested matches.
constexpr size_t kMaxNestedUserPieces = 64;

// The fields of one protobuf message, in order.
class FieldReader {
 public:
  FieldReader(std::string_view bytes, std::string_view message) : bytes_(bytes), message_(message) {}

  struct Field {
    uint32_t number;
    enum Wire : uint8_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 } wire;
    uint64_t value = 0;      // kVarint, kFixed32
    std::string_view bytes;  // kBytes
  };

  bool next(Field& field) {
    if (at_ == bytes_.size()) return false;
    const uint64_t key = varint();
    field.number = static_cast<uint32_t>(key >> 3);
    field.wire = static_cast<Field::Wire>(key & 7);
    if (key >> 32 != 0 || field.number == 0) fail("bad field number");
    switch (field.wire) {
      case Field::kVarint:
        field.value = varint();
        return true;
      case Field::kFixed64:
        take(8);
        return true;
      case Field::kFixed32: {
        const std::string_view raw = take(4);
        field.value = 0;
        for (int i = 3; i >= 0; --i) field.value = field.value << 8 | static_cast<uint8_t>(raw[i]);
        return true;
      }
      case Field::kBytes:
        field.bytes = take(varint());
        return true;
    }
    fail(fmt::format("field {} has wire type {}", field.number, static_cast<int>(field.wire)));
  }

  // The field's value, after checking that it is written as `wire`.
  const Field& expect(const Field& field, Field::Wire wire) const {
    if (field.wire != wire) fail(fmt::format("field {} has the wrong type", field.number));
    return field;
  }
  std::string_view bytes(const Field& field) const { return expect(field, Field::kBytes).bytes; }
  bool boolean(const Field& field) const { return expect(field, Field::kVarint).value != 0; }
  uint8_t enumerator(const Field& field, uint64_t last) const {
    const uint64_t value = expect(field, Field::kVarint).value;
    if (value < 1 || value > last)
      fail(fmt::format("field {} is {}, legal are 1 ... {}", field.number, value, last));
    return static_cast<uint8_t>(value);
  }
  float number(const Field& field) const {
    return std::bit_cast<float>(static_cast<uint32_t>(expect(field, Field::kFixed32).value));
  }

  [[noreturn]] void fail(std::string_view problem) const {
    throw std::runtime_error(
        fmt::format("is no SentencePiece model: {}: {} near byte {}", message_, problem, at_));
  }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<uint8_t>(take(1)[0]);
      value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
    fail("number longer than 10 bytes");
  }

  std::string_view take(uint64_t count) {
    if (count > bytes_.size() - at_) fail("truncated");
    at_ += count;
    return bytes_.substr(at_ - count, count);
  }

  std::string_view bytes_;
  std::string_view message_;
  size_t at_ = 0;
};

using Field = FieldReader::Field;

ModelProtoPiece read_piece(std::string_view bytes) {
  ModelProtoPiece piece;
  FieldReader reader(bytes, "piece");
  for (Field field; reader.next(field);) {
    if (field.number == 1) piece.piece = reader.bytes(field);
    if (field.number == 2 && !std::isfinite(reader.number(field))) reader.fail("score is not finite");
    if (field.number == 3) piece.type = static_cast<ModelProtoPiece::Type>(reader.enumerator(field, 6));
  }
  const std::string_view text = piece.piece;
  if (text.empty() || text.size() > kMaxPieceBytes) {
    reader.fail(fmt::format("piece of {} bytes, legal are 1 ... {}", text.size(), kMaxPieceBytes));
  }
  if (!is_valid_utf8(text) || text.find('\0') != std::string_view::npos) {
    reader.fail(fmt::format("piece {} is not UTF-8 or has a NUL", in_quotes(text)));
  }
  return piece;
}

void read_trainer_spec(std::string_view bytes, ModelProto& out) {
  FieldReader reader(bytes, "trainer_spec");
  for (Field field; reader.next(field);) {
    if (field.number == 3) out.model_type = static_cast<ModelProto::ModelType>(reader.enumerator(field, 4));
    if (field.number == 24) out.whitespace_is_suffix = reader.boolean(field);
    if (field.number == 35) out.byte_fallback = reader.boolean(field);
  }
}

void read_normalizer_spec(std::string_view bytes, ModelProto& out) {
  FieldReader reader(bytes, "normalizer_spec");
  for (Field field; reader.next(field);) {
    if (field.number == 2) out.charsmap = reader.bytes(field);
    if (field.number == 3) out.add_dummy_prefix = reader.boolean(field);
    if (field.number == 4) out.remove_extra_whitespaces = reader.boolean(field);
    if (field.number == 5) out.escape_whitespaces = reader.boolean(field);
  }
}

void check_denormalizer_spec(std::string_view bytes) {
  ModelProto unused;
  read_normalizer_spec(bytes, unused);
  if (!unused.charsmap.empty()) check_charsmap(unused.charsmap);
}

// The longest chain of user-defined pieces that are prefixes of each other.
void check_user_pieces(const ModelProto& proto) {
  std::vector<std::string_view> sorted;
  for (const auto& piece : proto.pieces) {
    if (piece.type == ModelProtoPiece::kUserDefined) sorted.push_back(piece.piece);
  }
  std::sort(sorted.begin(), sorted.end());
  std::vector<std::string_view> chain;
  for (const std::string_view piece : sorted) {
    while (!chain.empty() && !piece.starts_with(chain.back())) chain.pop_back();
    chain.push_back(piece);
    if (chain.size() > kMaxNestedUserPieces) {
      throw std::runtime_error(
          fmt::format("more than {} user-defined pieces are prefixes of each other", kMaxNestedUserPieces));
    }
  }
}

void check_pieces(const ModelProto& proto) {
  if (proto.pieces.empty()) throw std::runtime_error("is no SentencePiece model: it has no pieces");
  std::unordered_set<std::string_view> seen;
  size_t unknown = 0, bytes = 0;
  for (const auto& piece : proto.pieces) {
    if (!seen.insert(piece.piece).second) {
      throw std::runtime_error(fmt::format("piece {} is there twice", in_quotes(piece.piece)));
    }
    unknown += piece.type == ModelProtoPiece::kUnknown;
    bytes += piece.type == ModelProtoPiece::kByte;
  }
  if (unknown != 1) throw std::runtime_error(fmt::format("has {} unknown pieces, must have 1", unknown));
  const size_t expected = proto.byte_fallback ? 256 : 0;
  if (bytes != expected)
    throw std::runtime_error(fmt::format("has {} byte pieces, must have {}", bytes, expected));
  check_user_pieces(proto);
}

}  // namespace

ModelProto parse_model_proto(std::string_view bytes) {
  ModelProto proto;
  FieldReader reader(bytes, "model");
  for (Field field; reader.next(field);) {
    if (field.number == 1) proto.pieces.push_back(read_piece(reader.bytes(field)));
    if (field.number == 2) read_trainer_spec(reader.bytes(field), proto);
    if (field.number == 3) read_normalizer_spec(reader.bytes(field), proto);
    if (field.number == 5) check_denormalizer_spec(reader.bytes(field));
    if (proto.pieces.size() > static_cast<size_t>(kMaxPieces)) {
      reader.fail(fmt::format("more than {} pieces", kMaxPieces));
    }
  }
  check_pieces(proto);
  if (!proto.charsmap.empty()) check_charsmap(proto.charsmap);
  return proto;
}

}  // namespace spinfer
