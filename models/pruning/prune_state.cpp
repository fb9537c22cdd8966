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

std::string text_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

PruneState::PruneState(const fs::path& out, const nlohmann::json& request)
    : directory_(out.parent_path() / fmt::format(".{}.pruning", out.filename().string())) {
  std::error_code error;
  fs::create_directory(directory_, error);
  check(!error, "{}: cannot be created: {}", directory_.string(), error.message());
  lock_ = ::open(directory_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  check_system(lock_ >= 0, "{}: cannot be opened", directory_.string());
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    ::close(lock_);
    fail("{}: another prune is writing this output", directory_.string());
  }
  const std::string text = request.dump(1) + "\n";
  if (text_of(directory_ / kRequestFile) == text) {
    while (fs::exists(layer_directory(layers_) / kSingleFile, error)) ++layers_;
    return;
  }
  for (const auto& entry : fs::directory_iterator(directory_)) fs::remove_all(entry.path(), error);
  std::ofstream(directory_ / kRequestFile, std::ios::binary) << text;
}

PruneState::~PruneState() {
  std::error_code ignored;
  if (layers_ == 0) fs::remove_all(directory_, ignored);
  ::close(lock_);
}

fs::path PruneState::layer_directory(int layer) const {
  return directory_ / fmt::format("layer-{:05}", layer);
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
  std::error_code error;
  fs::remove_all(directory_, error);
  check(!error, "{}: cannot be removed: {}", directory_.string(), error.message());
  layers_ = 0;
}

}  // namespace spinfer
