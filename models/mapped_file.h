// A regular file mapped read-only into memory.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>

namespace spinfer {

/// The mapping lives as long as this; whoever points into it keeps a shared_ptr.
class MappedFile {
 public:
  /// Throws `Error` naming the file if it is absent, no regular file, empty or cannot be mapped.
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return bytes_; }
  const std::filesystem::path& path() const { return path_; }
  /// Asks the kernel to start reading a part of bytes().
  void prefetch(std::span<const std::byte> part) const;

 private:
  MappedFile(std::filesystem::path path, std::span<const std::byte> bytes)
      : path_(std::move(path)), bytes_(bytes) {}
  std::filesystem::path path_;
  std::span<const std::byte> bytes_;
};

/// For programs: from now on a page that cannot be read (the file was cut off or its disk failed after it was
/// mapped, or memory is damaged: SIGBUS) ends the process with one line on stderr and status 1.
void end_where_pages_are_lost();

}  // namespace spinfer
