// Pruned layers on disk, kept beside the output until all are there.
#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "kernels/thread_pool.h"
#include "kernels/weights.h"

namespace spinfer {

/// The pruned matrices of a layer by name, "….weight".
using PrunedLayer = std::map<std::string, DenseMatrix>;

/// The directory ".<name of out>.pruning": state.json with what the run was asked for, and layer-NNNNN/ as
/// each layer is done. Survives interruption and kill; one process at a time.
class PruneState {
 public:
  /// Takes over the layers of an earlier run if its `request` was the same, else starts anew. `out` absolute.
  /// Throws `Error` if another process is at it, or if in its place is a link, or a directory that holds
  /// anything else: nothing is deleted then.
  PruneState(const std::filesystem::path& out, const nlohmann::json& request);
  /// Removes the directory unless it holds a layer that is done.
  ~PruneState();
  PruneState(const PruneState&) = delete;
  PruneState& operator=(const PruneState&) = delete;

  int layers() const { return layers_; }  ///< done: 0 … layers() − 1
  /// Layer layers(), on disk on return.
  void save(const PrunedLayer& layer);
  /// A matrix m×k of a layer that is done, mapped.
  DenseMatrix load(int layer, const std::string& name, int64_t m, int64_t k, ThreadPool& pool) const;
  void remove();

 private:
  std::filesystem::path layer_directory(int layer) const;

  std::filesystem::path directory_;
  int lock_ = -1;
  int layers_ = 0;
};

}  // namespace spinfer
