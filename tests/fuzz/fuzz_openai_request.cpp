// Bodies of requests: whatever the bytes, each parser accepts them or throws one line, whose error document
// is JSON.
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/server/openai_request.h"
#include "engine/server/openai_response.h"

using namespace spinfer;

namespace {

void require(bool ok) {
  if (!ok) std::abort();
}

template <class Parse>
void parse_one(Parse&& parse) {
  try {
    parse();
  } catch (const RequestError& error) {
    require(error.status == 400);
    require(std::string_view(error.what()).find('\n') == std::string_view::npos);
    const auto document = nlohmann::json::parse(error_json(error));
    require(document.at("error").at("message").is_string());
  }
}

void use(const GenerationRequest& request) {
  require(request.n >= 1 && request.n <= kMaxChoices);
  require(request.chat ? !request.messages.empty() && request.messages.size() <= kMaxMessages
                       : !request.prompts.empty() &&
                             request.prompts.size() * size_t(request.n) <= size_t{kMaxChoices});
  require(!request.max_tokens || *request.max_tokens >= 1);
  require(request.params.logprobs <= kMaxTopLogprobs);
  check_sampling_params(request.params);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  parse_one([&] { use(parse_completion_request(body)); });
  parse_one([&] { use(parse_chat_request(body)); });
  parse_one([&] { parse_tokenize_request(body); });
  parse_one([&] { parse_detokenize_request(body); });
  return 0;
}
