#include "models/safetensors_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "kernels/check.h"

namespace spinfer {
namespace {

constexpr int64_t kMaxAlignment = 64;
constexpr int64_t kLengthBytes = 8;

}  // namespace

void sync_directory(const std::filesystem::path& directory) {
  const int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  check(fd >= 0, "{}: cannot be opened: {}", directory.string(), std::strerror(errno));
  const int result = ::fsync(fd);
  const int cause = errno;
  ::close(fd);
  // Some file systems have no fsync for directories.
  check(result == 0 || cause == EINVAL || cause == ENOTSUP, "{}: fsync: {}", directory.string(),
        std::strerror(cause));
}

SafetensorsWriter::SafetensorsWriter(std::filesystem::path path, int64_t header_capacity)
    : path_(std::move(path)), partial_(path_.string() + ".partial") {
  // The data part begins at a multiple of kMaxAlignment, so that alignment in it is alignment in the mapped
  // file.
  header_capacity_ =
      (header_capacity + kLengthBytes + kMaxAlignment - 1) / kMaxAlignment * kMaxAlignment - kLengthBytes;
  fd_ = ::open(partial_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  check(fd_ >= 0, "{}: cannot be created: {}", partial_.string(), std::strerror(errno));
}

SafetensorsWriter::~SafetensorsWriter() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(partial_.c_str());
}

void SafetensorsWriter::write(const void* data, size_t size, int64_t offset) {
  constexpr size_t kChunk = size_t{256} << 20;
  const auto* bytes = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = ::pwrite(fd_, bytes, std::min(size, kChunk), offset);
    if (written < 0 && errno == EINTR) continue;
    check(written > 0, "{}: writing {} bytes at {}: {}", partial_.string(), size, offset,
          std::strerror(errno));
    bytes += written;
    size -= size_t(written);
    offset += written;
  }
}

void SafetensorsWriter::add(const std::string& name, Dtype dtype, std::vector<int64_t> shape,
                            std::span<const std::byte> data, int64_t alignment) {
  assert(alignment > 0 && alignment <= kMaxAlignment && kMaxAlignment % alignment == 0);
  if (const int64_t skip = (alignment - position_ % alignment) % alignment; skip > 0) {
    constexpr std::array<std::byte, kMaxAlignment> kZeros{};
    add(fmt::format("padding.{}", paddings_++), Dtype::u8, {skip}, std::span(kZeros).first(size_t(skip)), 1);
  }
  TensorEntry entry{name, dtype, std::move(shape), uint64_t(position_), uint64_t(position_) + data.size()};
  write(data.data(), data.size(), kLengthBytes + header_capacity_ + position_);
  position_ += int64_t(data.size());
  tensors_.push_back(std::move(entry));
}

void SafetensorsWriter::finish() {
  nlohmann::ordered_json header;
  if (!metadata_.empty()) header["__metadata__"] = metadata_;
  for (const auto& t : tensors_) {
    header[t.name] = {{"dtype", dtype_name(t.dtype)}, {"shape", t.shape}, {"data_offsets", {t.begin, t.end}}};
  }
  std::string text = tensors_.empty() && metadata_.empty() ? "{}" : header.dump();
  if (int64_t(text.size()) > header_capacity_) {
    throw std::logic_error(
        fmt::format("safetensors header of {} bytes does not fit {}", text.size(), header_capacity_));
  }
  text.resize(size_t(header_capacity_), ' ');
  const uint64_t length = text.size();
  write(&length, sizeof(length), 0);
  write(text.data(), text.size(), kLengthBytes);
  check_system(::fsync(fd_) == 0, "{}: fsync", partial_.string());
  check_system(::rename(partial_.c_str(), path_.c_str()) == 0, "{}: cannot be renamed to {}",
               partial_.string(), path_.string());
  ::close(std::exchange(fd_, -1));
  sync_directory(path_.has_parent_path() ? path_.parent_path() : ".");
}

}  // namespace spinfer
