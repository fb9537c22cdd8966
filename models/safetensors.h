// Reading safetensors files (untrusted): 8 bytes header length, a JSON header, then the tensors' bytes.
// Checked before use: header length and JSON, known dtypes, shapes that do not overflow, byte counts that
// match the shape, tensors that follow each other without overlap or hole and end exactly where the file does
// (as the format demands).
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "models/mapped_file.h"

namespace spinfer {

inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;  ///< bytes; the reference implementation's cap
inline constexpr size_t kMaxSafetensors = 1 << 18;              ///< tensors in one file
inline constexpr size_t kMaxSafetensorsDims = 8;

enum class Dtype { boolean, u8, i8, f8_e4m3, f8_e5m2, u16, i16, f16, bf16, u32, i32, f32, u64, i64, f64 };
int64_t dtype_bytes(Dtype dtype);
/// As the file spells it: "F16".
const char* dtype_name(Dtype dtype);

struct TensorEntry {
  std::string name;
  Dtype dtype = Dtype::f16;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  ///< bytes, from the end of the header

  std::string shape_text() const;  ///< "[640, 128]"
};

struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;  ///< by position in the file
  std::map<std::string, std::string> metadata;
};

/// Parses the JSON header of a file whose data part has `data_bytes` bytes. Throws `Error` beginning with
/// `source` and naming the tensor.
SafetensorsHeader parse_safetensors_header(std::string_view json, uint64_t data_bytes,
                                           const std::string& source);

/// A file mapped and validated.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);
  SafetensorsFile(SafetensorsFile&&) = default;
  SafetensorsFile& operator=(SafetensorsFile&&) = default;

  const std::vector<TensorEntry>& tensors() const { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  const std::filesystem::path& path() const { return file_->path(); }
  const std::shared_ptr<const MappedFile>& file() const { return file_; }
  /// Null if there is none of that name.
  const TensorEntry* find(const std::string& name) const;
  std::span<const std::byte> bytes(const TensorEntry& tensor) const {
    return data_.subspan(tensor.begin, tensor.end - tensor.begin);
  }

 private:
  std::shared_ptr<const MappedFile> file_;
  std::span<const std::byte> data_;
  SafetensorsHeader header_;
  std::map<std::string_view, const TensorEntry*> by_name_;
};

}  // namespace spinfer
