// Writing one safetensors file, tensor by tensor, atomically.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "models/safetensors.h"

namespace spinfer {

/// Room in the header for one tensor of that name.
constexpr int64_t safetensors_entry_bytes(size_t name_size) {
  return int64_t(name_size) + 160;
}

/// fsync of a directory, so that names created or renamed in it survive a crash. Throws `Error`.
void sync_directory(const std::filesystem::path& directory);

/// Data goes straight to disk; the header, whose room is set aside at the start, is written by `finish`.
/// Until then the file is called `<path>.partial`; it is removed if `finish` is never reached. Errors name
/// the file and the cause.
class SafetensorsWriter {
 public:
  /// `header_capacity` bytes of header: see safetensors_entry_bytes (padding and metadata entries included).
  SafetensorsWriter(std::filesystem::path path, int64_t header_capacity);
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  /// `alignment` of the first byte in the file, a power of two of at most 64: where bytes must be skipped
  /// they become a U8 tensor "padding.N", as the format allows no holes.
  void add(const std::string& name, Dtype dtype, std::vector<int64_t> shape, std::span<const std::byte> data,
           int64_t alignment = 2);
  void set_metadata(const std::string& key, const std::string& value) { metadata_[key] = value; }
  /// Bytes of tensors so far.
  int64_t data_bytes() const { return position_; }
  /// Header, fsync, rename, fsync of the directory.
  void finish();

 private:
  void write(const void* data, size_t size, int64_t offset);

  std::filesystem::path path_, partial_;
  int fd_ = -1;
  int64_t header_capacity_;
  int64_t position_ = 0;
  int paddings_ = 0;
  std::vector<TensorEntry> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace spinfer
