// The files of a tokenizer, read whole and bounded. Everything behind it works on memory only.
#pragma once

#include <cstddef>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace spinfer {

/// Largest tokenizer file that is read; the largest real ones are about 35 MB (tokenizer.json of 256k
/// pieces).
inline constexpr size_t kMaxTokenizerFileBytes = size_t{64} << 20;

struct TokenizerFile {
  std::string name;  ///< "tokenizer.json", "merges.txt", ...
  std::string path;  ///< what error messages call it
  std::string content;
};

/// An error whose message names the file.
class FileError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Throws FileError "<path>: <problem>" on one line; control characters of `problem` are blanked.
[[noreturn]] void fail_file(std::string_view path, std::string_view problem);

/// Runs `f`; an std::runtime_error that names no file yet is thrown again by fail_file.
template <typename F>
auto naming_file(std::string_view path, F&& f) {
  try {
    return f();
  } catch (const FileError&) {
    throw;
  } catch (const std::runtime_error& e) {
    fail_file(path, e.what());
  }
}

/// `text` in quotes for an error message: control characters escaped, cut after 40 bytes.
std::string in_quotes(std::string_view text);

class FileSet {
 public:
  /// Every name the loaders know, in no particular order.
  static constexpr std::string_view kKnownNames[] = {
      "tokenizer.json",          "tokenizer.model",    "vocab.json",        "merges.txt",
      "gpt2-vocab.json",         "gpt2-merges.txt",    "added_tokens.json", "tokenizer_config.json",
      "special_tokens_map.json", "chat_template.jinja"};
  /// Reads those of kKnownNames that are in `dir`. Throws for a directory or device in place of a file, a
  /// file that cannot be read or is larger than kMaxTokenizerFileBytes, and a `dir` that is none.
  static FileSet read(const std::filesystem::path& dir);
  FileSet(std::string dir, std::vector<TokenizerFile> files)
      : dir_(std::move(dir)), files_(std::move(files)) {}

  /// nullptr if there is no such file.
  const TokenizerFile* find(std::string_view name) const;
  const std::string& dir() const { return dir_; }

 private:
  std::string dir_;
  std::vector<TokenizerFile> files_;
};

}  // namespace spinfer
