// Tokenizer files and text from anywhere: an std::runtime_error or a tokenizer whose ids, text and streamed
// text agree. Input: one byte for the kind of file, one for the length of the text, the text, the file.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "tests/tokenizer/sample_tokenizers.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

namespace spinfer {
namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

void check_text(const Tokenizer& tokenizer, std::string_view text, bool is_lossless) {
  for (const bool parse_special : {false, true}) {
    const auto ids = tokenizer.encode(text, true, parse_special);
    for (const int32_t id : ids) require(id >= 0 && id < tokenizer.vocab_size());
    const std::string decoded = tokenizer.decode(ids);
    require(is_valid_utf8(decoded));
    if (is_lossless && !parse_special) require(decoded == replace_invalid_utf8(text));

    IncrementalDecoder decoder(tokenizer, {});
    std::string streamed;
    for (const int32_t id : ids) streamed += decoder.push(id);
    require(streamed + decoder.finish() == decoded);
  }
}

// The text's bytes as ids, for sequences that encoding does not give.
void check_ids(const Tokenizer& tokenizer, std::string_view text) {
  IncrementalDecoder decoder(tokenizer, {});
  std::vector<int32_t> ids;
  std::string streamed;
  for (const char c : text) {
    ids.push_back(static_cast<uint8_t>(c) % tokenizer.vocab_size());
    streamed += decoder.push(ids.back());
  }
  require(streamed + decoder.finish() == tokenizer.decode(ids));
}

// Sound files, and the tokenizers made from them.
struct Sound {
  std::string vocab = sample::vocab_json();
  std::string ranks = sample::ranks_file();
  std::string model = sample::model_proto(sample::llama_pieces());
  Tokenizer byte_level = sample::load({{"tokenizer.json", sample::byte_level_json().dump()}});
  Tokenizer metaspace = sample::load({{"tokenizer.json", sample::metaspace_json().dump()}});
  Tokenizer sentencepiece = sample::load({{"tokenizer.model", model}});
};

void check_file(uint8_t kind, const std::string& file, std::string_view text, const Sound& sound) {
  const size_t cut = std::min(file.find('\0'), file.size());  // where two files are given
  const std::string first = file.substr(0, cut), second = file.substr(std::min(cut + 1, file.size()));
  TokenizerHints hints;
  if (kind & 0x80) hints.vocab_size = 300;
  const auto load = [&]() -> Tokenizer {
    switch (kind & 7) {
      case 0:
        return sample::load({{"tokenizer.json", file}}, hints);
      case 1:
        return sample::load({{"tokenizer.model", file}}, hints);
      case 2:
        return sample::load({{"vocab.json", first}, {"merges.txt", second}}, hints);
      case 3:
        return sample::load({{"vocab.json", sound.vocab}, {"merges.txt", file}}, hints);
      case 4:
        return sample::load({{"tokenizer.model", sound.ranks}, {"tokenizer_config.json", file}}, hints);
      default:
        return sample::load({{"tokenizer.model", sound.model},
                             {"special_tokens_map.json", first},
                             {"added_tokens.json", second}},
                            hints);
    }
  };
  const Tokenizer tokenizer = load();
  check_text(tokenizer, text, false);
  check_ids(tokenizer, text);
}

void check_sound(const Sound& sound, std::string_view text) {
  check_text(sound.byte_level, text, true);
  const bool has_metaspace = text.find("\u2581") != std::string_view::npos;  // decodes to a space
  check_text(sound.metaspace, text, !has_metaspace);
  check_text(sound.sentencepiece, text, !has_metaspace);
  require(sound.metaspace.encode(text, true) == sound.sentencepiece.encode(text, true));
}

}  // namespace
}  // namespace spinfer

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const spinfer::Sound sound;
  if (size < 2) return 0;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  if (data[0] & 0x40) {
    spinfer::check_sound(sound, input.substr(1));
    return 0;
  }
  const std::string_view text = input.substr(2, data[1]);
  const std::string file(input.substr(2 + text.size()));
  try {
    spinfer::check_file(data[0], file, text, sound);
  } catch (const std::runtime_error& e) {
    spinfer::require(std::string_view(e.what()).find('\n') == std::string_view::npos);
  }
  return 0;
}
