// `bench kernel` on the GPU: the sparse linear against the better of cuBLASLt (autotuned) and cublasGemmEx,
// as scripts/results/ and the README report it. Weights are cold: buffers rotate through more than four times
// the L2 cache; both sides run as replayed graphs in one process.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace spinfer {

struct GpuBenchShape {
  int64_t m = 0;  ///< out features
  int64_t k = 0;  ///< in features
};

/// QKV together, and gate with up together, of OPT, LLaMA and Qwen2 models.
std::vector<GpuBenchShape> fused_model_shapes();
/// The nine large matrices whose geometric mean issue targets speak of.
std::vector<GpuBenchShape> large_shapes();

struct GpuBenchOptions {
  std::vector<GpuBenchShape> shapes;  ///< the paper's are `paper_shapes` (kernels/bench/linear_bench.h)
  std::vector<int> n;                 ///< tokens, ≥ 1
  std::vector<double> sparsities;     ///< 0 … 1
  /// "auto" (what the engine would run), "smbd", "stream", "scratch", "fused", "cusparse"; each gives rows of
  /// its own.
  std::vector<std::string> kernels = {"auto"};
  int ordinal = 0;
  int batches = 7;    ///< graph replays timed, ≥ 5; their median is reported
  int launches = 20;  ///< launches in a graph, at least
  uint64_t seed = 1;
};

struct GpuBenchRow {
  int64_t m = 0, k = 0;
  int n = 0;
  double sparsity = 0;
  std::string kernel;        ///< as asked for, and for "auto" what it chose: "auto:stream"
  double us = 0;             ///< median over batches, a launch
  double dense_us = 0;       ///< of the better cuBLAS, same run
  double speedup = 0;        ///< dense_us / us
  double gbps = 0;           ///< formula bytes + x + y over us
  double floor_pct = 0;      ///< time to read the formula's bytes at the measured bandwidth, of us
  double rel_error = 0;      ///< against fp32 accumulation, on a sample of rows
  int64_t packed_bytes = 0;  ///< the size formula
  int64_t device_bytes = 0;  ///< what the kernel's layout takes
  double prepare_gbps =
      0;  ///< formula bytes on the device over the time to make that layout of them, at load
  std::string dense_algorithm;
  std::vector<double> samples_us, dense_samples_us;  ///< one per batch
};

struct GpuBenchReport {
  std::string gpu;
  std::string driver;
  double read_gbps = 0;  ///< measured: one pass over 4 GiB
  std::vector<GpuBenchRow> rows;
};

/// Throws `Error` where there is no GPU or the program was built without CUDA. `on_row` sees each row as it
/// is done.
GpuBenchReport run_gpu_linear_bench(const GpuBenchOptions& options,
                                    const std::function<void(const GpuBenchRow&)>& on_row = {});

/// The report as one JSON document (`rows_only`: the array that `bench kernel --json` prints), and as CSV
/// lines.
std::string to_json(const GpuBenchReport& report, bool rows_only);
std::string to_csv(const GpuBenchReport& report);
/// Lines for people, a header first.
std::string to_table(const GpuBenchReport& report);

}  // namespace spinfer
