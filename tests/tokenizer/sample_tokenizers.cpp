#include "tests/tokenizer/sample_tokenizers.h"

#include <fmt/format.h>

#include <bit>
#include <cstdint>

#include "tokenizer/byte_alphabet.h"

namespace spinfer::sample {
namespace {

using nlohmann::json;

constexpr const char* kMeta = "\xE2\x96\x81";

const std::vector<std::pair<std::string, std::string>>& byte_merges() {
  static const std::vector<std::pair<std::string, std::string>> merges = {
      {"h", "e"}, {"l", "l"}, {"he", "ll"}, {"hell", "o"}, {"\xC4\xA0", "w"}, {"\xC4\xA0w", "o"}};
  return merges;
}

json byte_vocab() {
  json vocab = json::object();
  for (int byte = 0; byte < 256; ++byte) vocab[byte_alphabet_char(static_cast<unsigned char>(byte))] = byte;
  int id = 256;
  for (const auto& [left, right] : byte_merges()) vocab[left + right] = id++;
  return vocab;
}

std::string varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  return out + static_cast<char>(value);
}

std::string proto_number(int field, uint64_t value) {
  return varint(field << 3) + varint(value);
}

std::string proto_float(int field, float value) {
  std::string out = varint(field << 3 | 5);
  const auto bits = std::bit_cast<uint32_t>(value);
  for (int i = 0; i < 4; ++i) out += static_cast<char>(bits >> (8 * i));
  return out;
}

std::string base64(std::string_view bytes) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : bytes) {
    bits = bits << 8 | static_cast<uint8_t>(c);
    for (count += 8; count >= 6; count -= 6) out += kDigits[bits >> (count - 6) & 63];
  }
  if (count > 0) out += kDigits[bits << (6 - count) & 63];
  while (out.size() % 4 != 0) out += '=';
  return out;
}

}  // namespace

json byte_level_json() {
  json merges = json::array();
  for (const auto& [left, right] : byte_merges()) merges.push_back(left + " " + right);
  return {
      {"added_tokens",
       {{{"id", kBos}, {"content", "<|bos|>"}, {"special", true}},
        {{"id", kEot}, {"content", "<|eot|>"}, {"special", true}},
        {{"id", kSpinfer}, {"content", "spinfer"}, {"special", false}}}},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"post_processor",
       {{"type", "TemplateProcessing"},
        {"single", {{{"SpecialToken", {{"id", "<|bos|>"}}}}, {{"Sequence", {{"id", "A"}}}}}}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", byte_vocab()}, {"merges", merges}}},
  };
}

std::vector<Piece> llama_pieces() {
  std::vector<Piece> pieces = {{"<unk>", 0, 2}, {"<s>", 0, 3}, {"</s>", 0, 3}};
  for (int byte = 0; byte < 256; ++byte) pieces.push_back({fmt::format("<0x{:02X}>", byte), 0, 6});
  float score = 0;
  for (const std::string& text :
       {std::string("he"), std::string("ll"), std::string("hell"), std::string("hello"),
        std::string(kMeta) + "hello", std::string(kMeta) + kMeta, std::string(kMeta)}) {
    pieces.push_back({text, score -= 1, 1});
  }
  for (char c = 'a'; c <= 'z'; ++c) pieces.push_back({std::string(1, c), score -= 1, 1});
  return pieces;
}

json metaspace_json() {
  json vocab = json::object();
  int id = 0;
  for (const Piece& piece : llama_pieces()) vocab[piece.text] = id++;
  const std::string m = kMeta;
  return {
      {"added_tokens",
       {{{"id", 0}, {"content", "<unk>"}, {"special", true}},
        {{"id", 1}, {"content", "<s>"}, {"special", true}},
        {{"id", 2}, {"content", "</s>"}, {"special", true}}}},
      {"normalizer",
       {{"type", "Sequence"},
        {"normalizers",
         {{{"type", "Prepend"}, {"prepend", m}},
          {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", m}}}}}},
      {"pre_tokenizer", nullptr},
      {"post_processor",
       {{"type", "TemplateProcessing"},
        {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}}}},
      {"decoder",
       {{"type", "Sequence"},
        {"decoders",
         {{{"type", "Replace"}, {"pattern", {{"String", m}}}, {"content", " "}},
          {{"type", "ByteFallback"}},
          {{"type", "Fuse"}},
          {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}}},
      {"model",
       {{"type", "BPE"},
        {"unk_token", "<unk>"},
        {"fuse_unk", true},
        {"byte_fallback", true},
        {"vocab", vocab},
        {"merges", {"h e", "l l", "he ll", "hell o", m + " hello", m + " " + m}}}},
  };
}

std::string proto_bytes(int field, std::string_view content) {
  return varint(field << 3 | 2) + varint(content.size()) + std::string(content);
}

std::string model_proto(const std::vector<Piece>& pieces, const ProtoOptions& options) {
  std::string out;
  for (const Piece& piece : pieces) {
    out += proto_bytes(
        1, proto_bytes(1, piece.text) + proto_float(2, piece.score) + proto_number(3, piece.type));
  }
  out += proto_bytes(2, proto_number(3, options.model_type) + proto_number(35, options.byte_fallback));
  out += proto_bytes(3, proto_bytes(1, "identity") + proto_bytes(2, options.charsmap) +
                            proto_number(3, options.add_dummy_prefix) +
                            proto_number(4, options.remove_extra_whitespaces));
  return out;
}

std::string ranks_file() {
  std::string out;
  int rank = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const auto c = static_cast<char>(byte);
    out += fmt::format("{} {}\n", base64({&c, 1}), rank++);
  }
  for (const char* text : {"he", "ll", "hell", "hello", " w", " wo"})
    out += fmt::format("{} {}\n", base64(text), rank++);
  return out;
}

std::string vocab_json() {
  return byte_vocab().dump();
}

std::string merges_txt() {
  std::string out = "#version: 0.2\n";
  for (const auto& [left, right] : byte_merges()) out += left + " " + right + "\n";
  return out;
}

FileSet files(std::initializer_list<std::pair<std::string, std::string>> name_and_content) {
  std::vector<TokenizerFile> list;
  for (const auto& [name, content] : name_and_content) list.push_back({name, "dir/" + name, content});
  return FileSet("dir", std::move(list));
}

Tokenizer load(std::initializer_list<std::pair<std::string, std::string>> name_and_content,
               const TokenizerHints& hints) {
  return Tokenizer::from_files(files(name_and_content), hints);
}

std::string load_error(std::initializer_list<std::pair<std::string, std::string>> name_and_content,
                       const TokenizerHints& hints) {
  try {
    load(name_and_content, hints);
  } catch (const std::runtime_error& e) {
    return e.what();
  }
  return "";
}

}  // namespace spinfer::sample
