// `linear` on TCA-BME against `linear` on the same weights dense, on any backend: what `bench kernel` prints.
//
// Weights are cold: each launch takes the next of as many copies as exceed the last-level cache several
// times. Dense and sparse batches alternate in one run, so that both see the same machine; figures are
// medians of batches.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace spinfer {

struct LinearShape {
  int64_t m;  ///< out features
  int64_t k;  ///< in features
};

/// The paper's 31 kernel matrices (OPT, LLaMA 2 and 3, Qwen2, Mixtral).
std::span<const LinearShape> paper_shapes();

struct LinearBenchOptions {
  std::vector<LinearShape> shapes;
  std::vector<int> tokens = {8, 16, 32};
  std::vector<double> sparsities = {0.5, 0.6};  ///< 0…1
  int batches = 7;                              ///< of each kind
  double batch_seconds = 0.05;                  ///< least length of a batch
  /// Weights rotated through, dense and sparse together; 0: 512 MB or four times the CPU's last-level cache,
  /// the larger. At most 8192 copies of a matrix: small ones are not cold.
  int64_t cold_bytes = 0;
  /// What the byte floor is reckoned with; 0: measured, by a plain read loop over the dense weights on the
  /// CPU's threads. Must be given where weights are not in host memory.
  double read_gbps = 0;
  uint64_t seed = 1;
  /// Called before each shape, sparsity and number of tokens; may be empty.
  std::function<void(const std::string& what)> progress;
};

struct LinearBenchRow {
  int64_t m, k;
  int n;
  double sparsity;  ///< as asked for
  double us;        ///< sparse, a launch
  double dense_us;
  double speedup;     ///< dense_us / us
  double gbps;        ///< of the packed weight and the activations
  double dense_gbps;  ///< of the dense weight and the activations
  double read_gbps;   ///< read loop, in the same run
  double floor_pct;   ///< time to read the packed bytes at read_gbps, as a share of `us`; NaN of a matrix too
                      ///< small (32 KiB dense) for a read loop
  double rel_error;   ///< ‖Y − reference‖ / ‖reference‖ on sampled rows, against double
  std::vector<double> us_batches, dense_us_batches, read_gbps_batches;  ///< in the order measured
};

/// Throws `UsageError` for sizes out of range, `Error` where the memory does not suffice.
std::vector<LinearBenchRow> bench_linear(const Backend& backend, const DeviceOptions& device,
                                         const LinearBenchOptions& options);

}  // namespace spinfer
