// Writing a checkpoint directory, packed or dense, so that it appears complete or not at all.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/weights.h"
#include "models/safetensors_writer.h"
#include "models/weight_table.h"

namespace spinfer {

/// `out`, absolute and without a trailing slash. Throws `Error` unless it does not exist or is an empty
/// directory, in an existing directory.
std::filesystem::path check_new_directory(const std::filesystem::path& out);

/// Those of the configuration, tokenizer and licence files that `source` has, what a rewritten model takes
/// along. Throws `Error` for one that cannot be copied.
std::vector<const char*> side_files_of(const std::filesystem::path& source);

/// Everything goes to a new directory beside `out`, which `finish` renames to it after fsync; if that is
/// never reached it is removed. Errors name the file and the cause.
class ModelDirectoryWriter {
 public:
  /// `out`: see check_new_directory. `header_capacity` bounds the
  /// header of each file: see header_capacity_for.
  ModelDirectoryWriter(const std::filesystem::path& out, int64_t header_capacity);
  ~ModelDirectoryWriter();
  ModelDirectoryWriter(const ModelDirectoryWriter&) = delete;
  ModelDirectoryWriter& operator=(const ModelDirectoryWriter&) = delete;

  /// A dense fp16 tensor; `shape` has one or two dimensions.
  void add(const std::string& name, const DenseMatrix& tensor, std::vector<int64_t> shape);
  /// The parts of one stacked linear, all dense or all packed, under their names. The bitmaps of all parts
  /// follow each other in the file, and so do their values: the stack can then be used in place.
  void add_linear(std::span<const std::string> names, std::span<const HostMatrix> parts);
  /// Copies configuration, tokenizer and licence files of `source`.
  void copy_side_files(const std::filesystem::path& source);
  void finish();

 private:
  SafetensorsWriter& shard();
  void close_shard();

  std::filesystem::path out_, temporary_;
  int64_t header_capacity_;
  std::unique_ptr<SafetensorsWriter> writer_;
  std::vector<std::string> shards_;
  std::map<std::string, std::string> weight_map_;  ///< tensor → shard
  int64_t total_bytes_ = 0;
  bool finished_ = false;
};

/// Room that all tensors of the table take in one header, packed.
int64_t header_capacity_for(const WeightTable& table);

}  // namespace spinfer
