#pragma once

#include "models/config.h"
#include "tokenizer/tokenizer.h"

namespace spinfer {

/// What a model's configuration says of its tokenizer.
inline TokenizerHints tokenizer_hints(const ModelConfig& config) {
  return {.model_type = config.model_type,
          .vocab_size = int32_t(config.vocab_size),
          .bos_id = config.bos_id,
          .eos_ids = config.eos_ids};
}

}  // namespace spinfer
