// Chat templates: whatever the text, it renders or throws one line, in bounded time and memory.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "tokenizer/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 4096) return 0;
  const spinfer::ChatTemplate chat({reinterpret_cast<const char*>(data), size}, "<s>", "</s>");
  try {
    chat.render({{"system", "Be brief."},
                 {"user", " Hi \n"},
                 {"assistant", "Hello, \"you\" 😀"},
                 {"user", "a", "Ann"}},
                true);
  } catch (const spinfer::ChatTemplateError& error) {
    if (std::string_view(error.what()).find('\n') != std::string_view::npos) std::abort();
  }
  return 0;
}
