// From a request's body to what the engine runs: everything that needs the loaded model but not the engine
// thread.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "engine/server/generation.h"
#include "engine/server/openai_request.h"
#include "tokenizer/chat_template.h"

namespace spinfer {

/// Immutable, so any thread may use it while the engine lives.
class ServedModel {
 public:
  /// `names`: what clients may call the model; the first is its own. Throws `Error` if the engine has no
  /// tokenizer.
  ServedModel(const Engine& engine, std::vector<std::string> names,
              std::optional<ChatTemplate> chat_template);

  // Each throws `RequestError`.
  PreparedRequest prepare_completion(std::string_view body,
                                     std::chrono::steady_clock::time_point arrived) const;
  PreparedRequest prepare_chat(std::string_view body, std::chrono::steady_clock::time_point arrived) const;
  std::string tokenize(std::string_view body) const;
  std::string detokenize(std::string_view body) const;
  std::string list() const;
  /// One entry of `list`.
  std::string describe(std::string_view name) const;
  bool has_name(std::string_view name) const;

 private:
  [[noreturn]] void fail_not_served(std::string_view name) const;
  void check_name(const std::string& name) const;  ///< of a body, where none means the first
  PreparedRequest prepare(const GenerationRequest& request, std::vector<std::vector<int32_t>> prompts,
                          std::chrono::steady_clock::time_point arrived) const;
  std::string entry(const std::string& name) const;
  /// Refuses what is too long before it is encoded, as far as that can be told.
  void check_bytes(std::string_view text, const char* field) const;
  int token_budget(const GenerationRequest& request, int64_t prompt_tokens) const;

  const Tokenizer& tokenizer_;
  int64_t max_model_len_;
  int64_t created_;
  std::vector<std::string> names_;
  std::optional<ChatTemplate> chat_template_;
};

}  // namespace spinfer
