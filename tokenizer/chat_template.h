// Chat templates: the Jinja text that a model directory brings, evaluated to the prompt of a conversation.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace spinfer {

struct ChatMessage {
  std::string role;  ///< "system", "user", "assistant", …
  std::string content;
  std::string name = {};  ///< given to the template where not empty
};

/// Most that is read of a file that is only a template.
inline constexpr int64_t kMaxTemplateBytes = 256 << 10;

/// The template cannot be used, or refuses the conversation. One line.
class ChatTemplateError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class FileSet;
class Tokenizer;
namespace jinja {
struct Template;
}

/// Renders as Hugging Face's apply_chat_template does (jinja2 with trim_blocks and lstrip_blocks), for the
/// part of Jinja that chat templates use: for, if, set, namespaces, expressions, common filters, tests and
/// string methods. No macros, includes, inheritance or tools. Any number of threads may render.
class ChatTemplate {
 public:
  /// chat_template.jinja, else "chat_template" of tokenizer_config.json (the one named "default" of a list),
  /// with the bos_token and eos_token that tokenizer_config.json or special_tokens_map.json name. None where
  /// there is no template. A template with syntax we do not know, or a list without a "default", is kept:
  /// `render` says what is wrong. Throws std::runtime_error for files that cannot be read.
  static std::optional<ChatTemplate> load(const std::filesystem::path& dir);
  static std::optional<ChatTemplate> from_files(const FileSet& files);
  /// `source` instead of the directory's own template, with the directory's special tokens.
  static ChatTemplate with_source(const std::filesystem::path& dir, std::string_view source);
  /// A token that is none is not known yet; until it is, it is an empty string.
  ChatTemplate(std::string_view source, std::optional<std::string> bos_token,
               std::optional<std::string> eos_token);

  /// The BOS and the first EOS of the directory's tokenizer for those that no file names: Hugging Face's
  /// tokenizers have defaults too. A token that a file says is null stays an empty string.
  void take_missing_tokens(const Tokenizer& tokenizer);

  /// The prompt text; special tokens are in it as their strings, BOS too where the template puts it. Throws
  /// `ChatTemplateError`: syntax or functions that are not supported, by name; raise_exception of the
  /// template, with its message; more work or text than 32 MiB of output or two million steps.
  std::string render(const std::vector<ChatMessage>& messages, bool add_generation_prompt) const;

 private:
  static ChatTemplate with_tokens_of(const FileSet& files, std::string_view source);

  std::shared_ptr<const jinja::Template> template_;
  std::string unusable_;  // why, instead of a template
  std::optional<std::string> bos_token_, eos_token_;
};

}  // namespace spinfer
