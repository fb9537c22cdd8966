#include "tokenizer/tokenizer.h"
#include "tokenizer/tokenizer_impl.h"

namespace spinfer {

IncrementalDecoder::IncrementalDecoder(const Tokenizer& tokenizer, std::span<const int32_t> prompt)
    : tokenizer_(&tokenizer), at_start_(true) {
  for (const int32_t id : prompt) push(id);
}

std::string IncrementalDecoder::push(int32_t id) {
  const TokenizerImpl& impl = *tokenizer_->impl_;
  std::string text;
  take_complete_chars(pending_, impl.decoded_bytes(id, false, at_start_), impl.decode.invalid_bytes, text);
  return text;
}

std::string IncrementalDecoder::finish() {
  std::string text;
  flush_incomplete_char(pending_, tokenizer_->impl_->decode.invalid_bytes, text);
  return text;
}

}  // namespace spinfer
