// A Hugging Face checkpoint directory (untrusted), dense or packed: finds tensors by name over one or many
// safetensors and hands them out as fp16, as TCA-BME, or as a block of either.
//
// Packed: a matrix "<name>" is stored as "<name>.tca_bme.bitmaps" U64 [group tiles][64],
// "<name>.tca_bme.offsets" U32 or U64 [group tiles + 1] and "<name>.tca_bme.values" F16 [nonzeros]; the
// file's metadata holds kPackedVersionKey and, under "<name>.tca_bme.shape", "M K". Linears that stay dense,
// and everything else, are stored as in any other checkpoint.
//
// Matrices in the sparse-bitmask format of compressed-tensors (models/bitmask_tensor.h) are read as dense
// ones.
//
// Weights that are NaN or infinite are refused, in whatever type they are stored; so are fp32 and bf16
// weights beyond fp16's range. Smaller ones are rounded to the nearest fp16, subnormals included.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/thread_pool.h"
#include "kernels/weights.h"
#include "models/bitmask_tensor.h"
#include "models/safetensors.h"
#include "models/weight_table.h"

namespace spinfer {

inline constexpr const char* kPackedVersionKey = "tca_bme.version";
inline constexpr const char* kPackedVersion = "1";
inline constexpr const char* kPackedSuffix = ".tca_bme.";
inline constexpr const char* kIndexFile = "model.safetensors.index.json";
inline constexpr const char* kSingleFile = "model.safetensors";

class Checkpoint {
 public:
  /// Opens and checks all files; packed matrices are validated bit by bit, on all threads. `pool` is used by
  /// the methods below too and must outlive this. Throws `Error` naming file and tensor.
  Checkpoint(const std::filesystem::path& directory, ThreadPool& pool);
  /// The same files, for another thread with its own pool: nothing is opened or checked again.
  Checkpoint(const Checkpoint& opened, ThreadPool& pool);

  const std::filesystem::path& directory() const { return directory_; }
  bool contains(const std::string& name) const {
    return find(name) || find_packed(name) || find(name + kBitmaskSuffix);
  }
  bool is_packed(const std::string& name) const { return find_packed(name) != nullptr; }

  /// A tensor [rows][cols], or a vector if cols = 0 (one row then). In place where it is stored as fp16.
  DenseMatrix tensor(const TensorSpec& spec) const;
  /// Rows × columns of an m×k matrix stored dense. In place where it is stored as fp16 and all columns are
  /// wanted.
  DenseMatrix dense_block(const std::string& name, int64_t m, int64_t k, Range rows, Range cols) const;
  /// An m×k matrix stored packed, in place.
  TcaBmeMatrix packed(const std::string& name, int64_t m, int64_t k) const;
  /// Rows × columns of an m×k matrix, however it is stored. Packed ones are cut without re-encoding at tile
  /// borders, elsewhere they are decoded and encoded again.
  HostMatrix block(const std::string& name, int64_t m, int64_t k, Range rows, Range cols) const;

 private:
  struct Located {
    const SafetensorsFile* file;
    const TensorEntry* entry;
  };
  struct Packed {
    const SafetensorsFile* file;
    TcaBmeMatrix matrix;
  };
  void open_single(const std::filesystem::path& file);
  void open_sharded(const std::filesystem::path& index);
  void collect_packed();
  Packed make_packed(const std::string& name, const Located& bitmaps) const;
  const Located* find(const std::string& name) const;
  const Packed* find_packed(const std::string& name) const;
  DenseMatrix read(const std::string& name, const std::vector<int64_t>& shape, int64_t k, Range rows,
                   Range cols) const;
  DenseMatrix read_bitmask(const std::string& name, int64_t m, int64_t k, Range rows, Range cols) const;

  std::filesystem::path directory_;
  ThreadPool& pool_;
  std::vector<std::shared_ptr<const SafetensorsFile>> files_;
  std::map<std::string, Located> tensors_;
  std::map<std::string, Packed> packed_;
};

/// Uninitialised fp16 host memory.
std::shared_ptr<Half[]> make_halves(int64_t count);

}  // namespace spinfer
