#include "tokenizer/file_set.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <stdexcept>

#include "tokenizer/utf8.h"

namespace spinfer {
namespace {

TokenizerFile read_file(const std::filesystem::path& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (std::filesystem::is_directory(status)) fail_file(path.string(), "is a directory, not a file");
  // A pipe or device could block or never end.
  if (!std::filesystem::is_regular_file(status)) fail_file(path.string(), "is not a regular file");
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error) fail_file(path.string(), fmt::format("cannot be read: {}", error.message()));
  if (size > kMaxTokenizerFileBytes) {
    fail_file(path.string(), fmt::format("has {} bytes, more than the {} a tokenizer file may have", size,
                                         kMaxTokenizerFileBytes));
  }
  std::ifstream in(path, std::ios::binary);
  if (!in) fail_file(path.string(), fmt::format("cannot be read: {}", std::strerror(errno)));
  TokenizerFile file{path.filename().string(), path.string(), std::string(size, '\0')};
  in.read(file.content.data(), static_cast<std::streamsize>(size));
  if (static_cast<uintmax_t>(in.gcount()) != size)
    fail_file(path.string(), "became shorter while it was read");
  return file;
}

}  // namespace

void fail_file(std::string_view path, std::string_view problem) {
  std::string line = fmt::format("{}: {}", path, problem);
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
  }
  throw FileError(line);
}

std::string in_quotes(std::string_view text) {
  constexpr size_t kShown = 40;
  std::string out = "'";
  for (const char c : replace_invalid_utf8(text.substr(0, kShown))) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7F) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  return out + (text.size() > kShown ? "...'" : "'");
}

FileSet FileSet::read(const std::filesystem::path& dir) {
  std::error_code error;
  if (!std::filesystem::is_directory(dir, error)) fail_file(dir.string(), "is not a directory");
  std::vector<TokenizerFile> files;
  for (const std::string_view name : kKnownNames) {
    if (std::filesystem::exists(dir / name, error)) files.push_back(read_file(dir / name));
  }
  return FileSet(dir.string(), std::move(files));
}

const TokenizerFile* FileSet::find(std::string_view name) const {
  for (const TokenizerFile& file : files_) {
    if (file.name == name) return &file;
  }
  return nullptr;
}

}  // namespace spinfer
