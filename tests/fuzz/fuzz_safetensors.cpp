// model.safetensors: whatever the bytes, a checkpoint opens or throws one line, and what it holds can be
// read.
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "kernels/check.h"
#include "models/checkpoint.h"

using namespace spinfer;
namespace fs = std::filesystem;

namespace {

void require(bool ok) {
  if (!ok) std::abort();
}

/// In memory where the system has such a file system.
class Directory {
 public:
  Directory() {
    const fs::path parent = fs::exists("/dev/shm") ? fs::path("/dev/shm") : fs::temp_directory_path();
    path_ = parent / ("spinfer-fuzz-" + std::to_string(::getpid()));
    fs::create_directories(path_);
  }
  ~Directory() { fs::remove_all(path_); }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

void write(const fs::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
}

/// Every tensor as if the configuration asked for it with the shape it has.
void read_all(const fs::path& directory, ThreadPool& pool) {
  const Checkpoint checkpoint(directory, pool);
  const SafetensorsFile file(directory / kSingleFile);
  for (const TensorEntry& entry : file.tensors()) {
    uint8_t sum = 0;
    for (const std::byte b : file.bytes(entry)) sum ^= uint8_t(b);
    require(sum <= 255);
    try {
      const bool matrix = entry.shape.size() == 2;
      if (matrix) {
        const int64_t m = entry.shape[0], k = entry.shape[1];
        checkpoint.block(entry.name, m, k, {m / 3, m}, {k / 2, k});
      } else if (entry.shape.size() == 1) {
        checkpoint.tensor({entry.name, entry.shape[0], 0});
      }
    } catch (const Error& e) {
      require(std::string_view(e.what()).find('\n') == std::string_view::npos);
    }
  }
}

}  // namespace

// The first byte chooses: even, the rest is the file; odd, the header's length is put before it, so that
// mutations need not keep it right: two bytes of length, header, data.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Directory directory;
  static ThreadPool pool(1);
  if (size < 3) return 0;
  std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 2 == 1) {
    const size_t header = std::min(size_t(data[1]) + 256 * size_t(data[2]), size - 3);
    uint64_t length = header;
    bytes = std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + bytes.substr(2);
  }
  write(directory.path() / kSingleFile, bytes);
  try {
    read_all(directory.path(), pool);
  } catch (const Error& e) {
    const std::string_view message = e.what();
    require(message.starts_with(directory.path().string()) && message.find('\n') == std::string_view::npos);
  }
  return 0;
}
