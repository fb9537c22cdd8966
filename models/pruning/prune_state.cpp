#include "models/pruning/prune_state.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/check.h"
#include "models/checkpoint.h"
#include "models/safetensors_writer.h"

namespace spinfer {
namespace {

namespace fs = std::filesystem;
constexpr const char* kRequestFile = "state.json";
constexpr std::string_view kLayer = "layer-";

std::string text_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

/// By name and kind, what a PruneState writes.
bool is_ours(const fs::directory_entry& entry) {
  const std::string name = entry.path().filename();
  const fs::file_type type = entry.symlink_status().type();
  return (type == fs::file_type::regular && name == kRequestFile) ||
         (type == fs::file_type::directory && name.starts_with(kLayer) &&
          name.find_first_not_of("0123456789", kLayer.size()) == std::string::npos);
}

std::error_code remove_ours(const fs::path& directory) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    if (is_ours(entry)) fs::remove_all(entry.path(), error);
    if (error) break;
  }
  return error;
}

}  // namespace

PruneState::PruneState(const fs::path& out, const nlohmann::json& request)
    : directory_(out.parent_path() / fmt::format(".{}.pruning", out.filename().string())) {
  std::error_code error;
  fs::create_directory(directory_, error);
  check(!error, "{}: cannot be created: {}", directory_.string(), error.message());
  // Not through a link: what an earlier run left is deleted, and that must be ours.
  lock_ = ::open(directory_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  check_system(lock_ >= 0, "{}: cannot be opened as a directory", directory_.string());
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    ::close(lock_);
    fail("{}: another prune is writing this output", directory_.string());
  }
  for (const auto& entry : fs::directory_iterator(directory_)) {
    if (is_ours(entry)) continue;
    ::close(lock_);
    fail("{}: holds {}, which prune did not put there; move it away, or choose another output",
         directory_.string(), entry.path().filename().string());
  }
  const std::string text = request.dump(1) + "\n";
  if (text_of(directory_ / kRequestFile) == text) {
    while (fs::exists(layer_directory(layers_) / kSingleFile, error)) ++layers_;
    return;
  }
  remove_ours(directory_);
  std::ofstream(directory_ / kRequestFile, std::ios::binary) << text;
}

PruneState::~PruneState() {
  std::error_code ignored;
  if (layers_ == 0 && !remove_ours(directory_)) fs::remove(directory_, ignored);
  ::close(lock_);
}

fs::path PruneState::layer_directory(int layer) const {
  return directory_ / fmt::format("{}{:05}", kLayer, layer);
}

void PruneState::save(const PrunedLayer& layer) {
  const fs::path directory = layer_directory(layers_);
  std::error_code error;
  fs::create_directory(directory, error);
  check(!error, "{}: cannot be created: {}", directory.string(), error.message());
  int64_t header = 256;
  for (const auto& [name, matrix] : layer) header += safetensors_entry_bytes(name.size());
  SafetensorsWriter writer(directory / kSingleFile, header);
  for (const auto& [name, matrix] : layer) {
    writer.add(name, Dtype::f16, {matrix.m, matrix.k},
               std::as_bytes(std::span(matrix.data, size_t(matrix.m * matrix.k))));
  }
  writer.finish();
  ++layers_;
}

DenseMatrix PruneState::load(int layer, const std::string& name, int64_t m, int64_t k,
                             ThreadPool& pool) const {
  return Checkpoint(layer_directory(layer), pool).dense_block(name, m, k, {0, m}, {0, k});
}

void PruneState::remove() {
  const std::error_code error = remove_ours(directory_);
  check(!error, "{}: cannot be removed: {}", directory_.string(), error.message());
  std::error_code ignored;  // somebody put something there meanwhile: the output is complete all the same
  fs::remove(directory_, ignored);
  layers_ = 0;
}

}  // namespace spinfer
