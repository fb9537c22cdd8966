#include "models/model_directory.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>

#include "kernels/check.h"
#include "models/checkpoint.h"
#include "models/json_text.h"

namespace spinfer {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kShardBytes = int64_t{4} << 30;  // a new file begins when one holds this much
constexpr int64_t kSimdAlignment = 64;

constexpr std::array kSideFiles = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "gpt2-vocab.json",
    "gpt2-merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "USE_POLICY.md",
};

/// Without "..", links and trailing slashes, as the system understands them, where the parent is there.
fs::path absolute_target(const fs::path& out) {
  fs::path target = fs::absolute(out);
  if (!target.has_filename()) target = target.parent_path();
  std::error_code error;
  const fs::path name = target.filename();
  if (name == "." || name == "..") {
    const fs::path found = fs::canonical(target, error);
    return error ? target : found;
  }
  const fs::path parent = fs::canonical(target.parent_path(), error);
  return error ? target : parent / name;
}

void sync_file(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  check(fd >= 0, "{}: cannot be opened: {}", path.string(), std::strerror(errno));
  const int result = ::fsync(fd);
  const int cause = errno;
  ::close(fd);
  check(result == 0, "{}: fsync: {}", path.string(), std::strerror(cause));
}

void write_text(const fs::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file.write(text.data(), std::streamsize(text.size()));
  file.close();
  check(file.good(), "{}: cannot be written ({} bytes): {}", path.string(), text.size(),
        std::strerror(errno));
  sync_file(path);
}

/// What is written is stored otherwise than compressed-tensors did: its description of the weights must not
/// stay. False if there is none.
bool write_uncompressed_config(const fs::path& from, const fs::path& to) {
  auto config = nlohmann::ordered_json::parse(read_text_file(from, kMaxConfigBytes), nullptr, false);
  const size_t erased =
      config.is_object() ? config.erase("quantization_config") + config.erase("compression_config") : 0;
  if (erased > 0) write_text(to, config.dump(2) + "\n");
  return erased > 0;
}

template <class T>
std::span<const std::byte> bytes_of(const T* data, int64_t count) {
  return std::as_bytes(std::span(data, size_t(count)));
}

}  // namespace

int64_t header_capacity_for(const WeightTable& table) {
  constexpr int64_t kPaddings = 3, kMetadata = 256;
  int64_t bytes = kMetadata;
  for (const TensorSpec& spec : table.other_tensors()) bytes += safetensors_entry_bytes(spec.name.size());
  for (const LayerSpec& layer : table.layers) {
    for (const LinearSpec* linear : layer.linears()) {
      bytes += kPaddings * safetensors_entry_bytes(sizeof("padding.1000"));
      for (const LinearPart& part : linear->parts) {
        const size_t name = part.name.size() + sizeof(".weight.tca_bme.bitmaps");
        bytes += 5 * safetensors_entry_bytes(name);  // three arrays, the shape in the metadata, a bias
      }
    }
  }
  return bytes;
}

fs::path check_new_directory(const fs::path& out) {
  const fs::path target = absolute_target(out);
  std::error_code error;
  const auto status = fs::symlink_status(target, error);
  if (fs::exists(status)) {
    check(fs::is_directory(status), "{}: exists and is no directory", target.string());
    check(fs::is_empty(target, error) && !error, "{}: the output directory must not exist or be empty",
          target.string());
  }
  const fs::path parent = target.parent_path();
  if (!fs::is_directory(parent, error))
    fail("{}: {}, so {} cannot be made in it", parent.string(), absence(parent, "directory"),
         target.filename().string());
  return target;
}

ModelDirectoryWriter::ModelDirectoryWriter(const fs::path& out, int64_t header_capacity)
    : out_(check_new_directory(out)), header_capacity_(header_capacity) {
  for (int attempt = 0;; ++attempt) {
    temporary_ =
        out_.parent_path() / fmt::format(".{}.partial-{}-{}", out_.filename().string(), ::getpid(), attempt);
    if (::mkdir(temporary_.c_str(), 0777) == 0) return;
    check(errno == EEXIST && attempt < 100, "{}: cannot be created: {}", temporary_.string(),
          std::strerror(errno));
  }
}

ModelDirectoryWriter::~ModelDirectoryWriter() {
  if (finished_) return;
  writer_.reset();
  std::error_code ignored;  // there is nobody left to tell
  fs::remove_all(temporary_, ignored);
}

SafetensorsWriter& ModelDirectoryWriter::shard() {
  if (writer_ && writer_->data_bytes() >= kShardBytes) close_shard();
  if (!writer_) {
    shards_.push_back(fmt::format("model-{:05}.safetensors", shards_.size() + 1));
    writer_ = std::make_unique<SafetensorsWriter>(temporary_ / shards_.back(), header_capacity_);
    writer_->set_metadata("format", "pt");  // Hugging Face's readers ask for it
  }
  return *writer_;
}

void ModelDirectoryWriter::close_shard() {
  if (!writer_) return;
  total_bytes_ += writer_->data_bytes();
  writer_->finish();
  writer_.reset();
}

void ModelDirectoryWriter::add(const std::string& name, const DenseMatrix& tensor,
                               std::vector<int64_t> shape) {
  shard().add(name, Dtype::f16, std::move(shape), bytes_of(tensor.data, tensor.m * tensor.k));
  weight_map_[name] = shards_.back();
}

void ModelDirectoryWriter::add_linear(std::span<const std::string> names, std::span<const HostMatrix> parts) {
  if (std::holds_alternative<DenseMatrix>(parts.front())) {
    for (size_t i = 0; i < parts.size(); ++i) {
      const auto& dense = std::get<DenseMatrix>(parts[i]);
      add(names[i], dense, {dense.m, dense.k});
    }
    return;
  }
  SafetensorsWriter& file = shard();
  file.set_metadata(kPackedVersionKey, kPackedVersion);
  const auto put = [&](size_t i, const char* what, Dtype dtype, std::vector<int64_t> shape,
                       std::span<const std::byte> data, int64_t alignment) {
    const std::string name = names[i] + kPackedSuffix + what;
    file.add(name, dtype, std::move(shape), data, i == 0 ? alignment : dtype_bytes(dtype));
    weight_map_[name] = shards_.back();
  };
  const auto view = [&](size_t i) -> const TcaBmeView& { return std::get<TcaBmeMatrix>(parts[i]).view(); };
  for (size_t i = 0; i < parts.size(); ++i) {
    const TcaBmeView& w = view(i);
    file.set_metadata(names[i] + kPackedSuffix + "shape", fmt::format("{} {}", w.m, w.k));
    put(i, "bitmaps", Dtype::u64, {w.tiles(), kBitmapsPerGroupTile},
        bytes_of(w.bitmaps, w.tiles() * kBitmapsPerGroupTile), kSimdAlignment);
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    const TcaBmeView& w = view(i);
    if (w.offsets32) {
      put(i, "offsets", Dtype::u32, {w.tiles() + 1}, bytes_of(w.offsets32, w.tiles() + 1), 8);
    } else {
      put(i, "offsets", Dtype::u64, {w.tiles() + 1}, bytes_of(w.offsets64, w.tiles() + 1), 8);
    }
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    const TcaBmeView& w = view(i);
    put(i, "values", Dtype::f16, {w.nonzeros}, bytes_of(w.values, w.nonzeros), kSimdAlignment);
  }
}

std::vector<const char*> side_files_of(const fs::path& source) {
  std::vector<const char*> names;
  for (const char* name : kSideFiles) {
    std::error_code error;
    if (fs::symlink_status(source / name, error).type() == fs::file_type::not_found) continue;
    const bool regular = fs::is_regular_file(source / name, error);
    check(regular, "{}: cannot be copied: {}", (source / name).string(),
          error ? error.message() : "not a regular file");
    names.push_back(name);
  }
  return names;
}

void ModelDirectoryWriter::copy_side_files(const fs::path& source) {
  for (const char* name : side_files_of(source)) {
    std::error_code error;
    if (name == std::string_view("config.json") &&
        write_uncompressed_config(source / name, temporary_ / name))
      continue;
    fs::copy_file(source / name, temporary_ / name, error);
    check(!error, "{}: cannot be copied to {}: {}", (source / name).string(), temporary_.string(),
          error.message());
    sync_file(temporary_ / name);
  }
}

void ModelDirectoryWriter::finish() {
  close_shard();
  if (shards_.size() == 1) {
    std::error_code error;
    fs::rename(temporary_ / shards_.front(), temporary_ / kSingleFile, error);
    check(!error, "{}: {}", (temporary_ / kSingleFile).string(), error.message());
  } else {
    const nlohmann::json index = {{"metadata", {{"total_size", total_bytes_}}}, {"weight_map", weight_map_}};
    write_text(temporary_ / kIndexFile, index.dump(1) + "\n");
  }
  sync_directory(temporary_);
  // Replaces an empty directory; fails if somebody put something into it meanwhile.
  check_system(::rename(temporary_.c_str(), out_.c_str()) == 0, "{}: cannot be renamed to {}",
               temporary_.string(), out_.string());
  finished_ = true;
  sync_directory(out_.parent_path());
}

}  // namespace spinfer
