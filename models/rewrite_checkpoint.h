// A checkpoint in, the same model with other linears out. Internal to models/.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "kernels/thread_pool.h"
#include "kernels/weights.h"

namespace spinfer {

struct Rewriting {
  enum class Output { packed, dense };
  Output output = Output::packed;
  double min_sparsity = 0.3;  ///< stacked linears with fewer zeros stay dense
  /// What becomes of the matrix `name` ("….weight") of a layer.
  std::function<HostMatrix(int layer, const std::string& name, HostMatrix matrix)> change;
  std::function<void(int64_t done, int64_t total)> progress;  ///< dense bytes written; may be empty
};

/// Throws `Error` where `out` could not be written: not a new or empty directory, or the input itself.
void check_output(const std::filesystem::path& in, const std::filesystem::path& out);

/// Writes `out` whole or not at all, one stacked linear in memory at a time.
void rewrite_checkpoint(const std::filesystem::path& in, const std::filesystem::path& out,
                        const Rewriting& rewriting, ThreadPool& pool);

/// The matrix itself where it is dense, else decoded.
DenseMatrix as_dense(const HostMatrix& matrix, ThreadPool& pool);

}  // namespace spinfer
