// Implements kernels/gpu_linear_bench.h.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>

#include "kernels/check.h"
#include "kernels/cuda/bench_kernels.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cusparse_baseline.h"
#include "kernels/cuda/dense_linear.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/timed_graph.h"
#include "kernels/gpu_linear_bench.h"

namespace spinfer {
namespace {

using namespace cuda;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 ? values[half] : (values[half - 1] + values[half]) / 2;
}

/// How often a matrix of `bytes` must exist so that a rotation through all exceeds four times the L2 cache.
int copies_for(int64_t bytes, const Context& context) {
  return int(std::max<int64_t>(2, 4 * context.facts().l2_bytes / std::max<int64_t>(bytes, 1) + 1));
}

class LinearBench {
 public:
  LinearBench(Context& context, const GpuBenchOptions& options, double read_gbps)
      : context_(context), options_(options), read_gbps_(read_gbps) {}

  void run(const GpuBenchShape& shape, const std::function<void(GpuBenchRow&&)>& emit) {
    m_ = shape.m;
    k_ = shape.k;
    const int max_n = *std::max_element(options_.n.begin(), options_.n.end());
    x_ = context_.allocate_shared(size_t(max_n) * size_t(k_) * sizeof(Half));
    y_ = context_.allocate_shared(size_t(max_n) * size_t(m_) * sizeof(Half));
    fill_random_sparse(context_, x(), max_n, k_, 0, 1.0f, options_.seed + 99);
    make_dense(options_.sparsities.front());
    std::vector<Dense> dense;
    for (const int n : options_.n) dense.push_back(prepare_dense(n));
    for (const double sparsity : options_.sparsities) {
      make_packed(sparsity);
      for (size_t i = 0; i < options_.n.size(); ++i)
        for (const std::string& kernel : options_.kernels)
          emit(time_sparse(options_.n[i], sparsity, kernel, dense[i]));
    }
    packed_.clear();
    csr_.clear();
    dense_.clear();
  }

 private:
  /// The baseline of one n, ready to be timed.
  struct Dense {
    std::string algorithm;
    std::unique_ptr<TimedGraph> graph;
  };

  Half* x() const { return static_cast<Half*>(x_.get()); }
  Half* y() const { return static_cast<Half*>(y_.get()); }
  const Half* dense(int i) const { return static_cast<const Half*>(dense_[size_t(i) % dense_.size()].get()); }

  void make_dense(double sparsity) {
    const int64_t bytes = 2 * m_ * k_;
    dense_.clear();
    for (int i = 0; i < copies_for(bytes, context_); ++i) {
      dense_.push_back(context_.allocate_shared(size_t(bytes)));
      fill_random_sparse(context_, static_cast<Half*>(dense_.back().get()), m_, k_, sparsity, 0.05f,
                         options_.seed + i);
    }
  }

  /// Packed copies; the first belongs to what `reference_` holds, the rest have masks of their own.
  void make_packed(double sparsity) {
    packed_.clear();
    csr_.clear();
    const auto source = context_.allocate_shared(size_t(2 * m_ * k_));
    int copies = 1;
    for (int i = 0; i < copies; ++i) {
      auto* values = static_cast<Half*>(source.get());
      fill_random_sparse(context_, values, m_, k_, sparsity, 0.05f, options_.seed + 1000 + i);
      packed_.push_back(prepare_timed(encode_on_device(context_, values, m_, k_)));
      // Dozens of times slower than the rest: two copies are cold enough.
      if (asked_for("cusparse") && csr_.size() < 2) csr_.emplace_back(context_, values, m_, k_);
      copies = copies_for(packed_.front().packed_bytes, context_);
      if (i == 0) {
        reference_w_ = context_.allocate_shared(size_t(2 * m_ * k_));
        SPINFER_CUDA_CHECK(cudaMemcpyAsync(reference_w_.get(), values, size_t(2 * m_ * k_),
                                           cudaMemcpyDeviceToDevice, context_.stream()));
      }
    }
  }

  /// `prepare_packed`; remembers the fastest of a matrix's copies, for the first one also grows the
  /// workspace.
  LinearWeight prepare_timed(DeviceTcaBme matrix) {
    if (packed_.empty()) prepare_gbps_ = 0;
    const double bytes = double(matrix.view.bytes());
    SPINFER_CUDA_CHECK(cudaStreamSynchronize(context_.stream()));
    const auto begin = std::chrono::steady_clock::now();
    LinearWeight weight =
        prepare_packed(context_, std::move(matrix), nullptr, {.keep_canonical = asked_for("smbd")});
    SPINFER_CUDA_CHECK(cudaStreamSynchronize(context_.stream()));
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    prepare_gbps_ = std::max(prepare_gbps_, bytes / seconds.count() * 1e-9);
    return weight;
  }

  bool asked_for(const char* kernel) const {
    return std::find(options_.kernels.begin(), options_.kernels.end(), kernel) != options_.kernels.end();
  }

  std::unique_ptr<TimedGraph> graph_of(int copies, const std::function<void(int)>& launch) {
    const int rounds = (options_.launches + copies - 1) / copies;
    return std::make_unique<TimedGraph>(context_, rounds * copies, launch);
  }

  Dense prepare_dense(int n) {
    DenseArgs args;
    args.m = m_;
    args.k = k_;
    args.n = n;
    args.w = dense(0);
    args.x = x();
    args.y = y();
    Dense result;
    result.algorithm = dense_choice(context_, args).algorithm;
    result.graph = graph_of(int(dense_.size()), [&](int i) {
      args.w = dense(i);
      dense_linear(context_, args);
    });
    return result;
  }

  LinearKernel kernel_of(const std::string& name, int n) const {
    const LinearProblem problem = problem_of(packed_.front().view, n);
    if (name == "auto") return choose_linear_kernel(problem, context_.facts());
    for (const LinearKernel kernel :
         {LinearKernel::smbd, LinearKernel::stream, LinearKernel::scratch, LinearKernel::fused})
      if (name == to_string(kernel)) {
        check(can_run(kernel, problem, context_.facts()),
              "bench kernel: {} cannot run {}×{} with {} tokens on {}", name, m_, k_, n,
              context_.info().name);
        return kernel;
      }
    throw UsageError(fmt::format(
        "bench kernel: unknown kernel {}: must be auto, smbd, stream, scratch, fused or cusparse", name));
  }

  GpuBenchRow time_sparse(int n, double sparsity, const std::string& name, const Dense& dense) {
    const bool csr = name == "cusparse";
    const LinearKernel kernel = csr ? LinearKernel::dense : kernel_of(name, n);
    const auto launch = [&](int i) {
      if (csr) return csr_[size_t(i) % csr_.size()].multiply(x(), n, y());
      const LinearWeight& w = packed_[size_t(i) % packed_.size()];
      linear_with(context_, LinearArgs{.w = w.view, .x = x(), .n = n, .y = y()}, kernel);
    };
    GpuBenchRow row;
    row.m = m_;
    row.k = k_;
    row.n = n;
    row.sparsity = sparsity;
    row.kernel = name == "auto" ? fmt::format("auto:{}", to_string(kernel)) : name;
    if (csr) {  // each copy allocates its scratch when it is used first, which a capture does not allow
      for (size_t i = 1; i < csr_.size(); ++i) launch(int(i));
    }
    const auto graph = graph_of(int(csr ? csr_.size() : packed_.size()), launch);
    // By turns, so that both meet the same clocks: tensor load lowers them for longer than a batch. The first
    // round warms up.
    for (int i = -1; i < options_.batches; ++i) {
      const double dense_us = dense.graph->time(), us = graph->time();
      if (i < 0) continue;
      row.dense_samples_us.push_back(dense_us);
      row.samples_us.push_back(us);
    }
    launch(0);
    row.rel_error =
        sampled_error(context_, static_cast<const Half*>(reference_w_.get()), x(), y(), m_, k_, n);
    row.dense_algorithm = dense.algorithm;
    row.us = median(row.samples_us);
    row.dense_us = median(row.dense_samples_us);
    row.speedup = row.dense_us / row.us;
    row.packed_bytes = packed_.front().packed_bytes;
    row.device_bytes = packed_.front().device_bytes;
    row.prepare_gbps = prepare_gbps_;
    row.gbps = double(row.packed_bytes + 2 * n * (m_ + k_)) / row.us * 1e-3;
    row.floor_pct = 100 * double(row.packed_bytes) / (read_gbps_ * 1e3) / row.us;
    return row;
  }

  Context& context_;
  const GpuBenchOptions& options_;
  double read_gbps_;
  double prepare_gbps_ = 0;
  int64_t m_ = 0, k_ = 0;
  std::shared_ptr<void> x_, y_, reference_w_;
  std::vector<std::shared_ptr<void>> dense_;
  std::vector<LinearWeight> packed_;
  std::vector<CusparseWeight> csr_;
};

std::string driver_version() {
  int version = 0;
  SPINFER_CUDA_CHECK(cudaDriverGetVersion(&version));
  return fmt::format("CUDA {}.{}", version / 1000, version % 1000 / 10);
}

}  // namespace

GpuBenchReport run_gpu_linear_bench(const GpuBenchOptions& options,
                                    const std::function<void(const GpuBenchRow&)>& on_row) {
  check(!options.shapes.empty() && !options.n.empty() && !options.sparsities.empty() &&
            !options.kernels.empty(),
        "bench kernel: shapes, n, sparsities and kernels must not be empty");
  for (const int n : options.n) check(n >= 1, "bench kernel: n = {}: must be at least 1", n);
  for (const double s : options.sparsities)
    check(s >= 0 && s <= 1, "bench kernel: sparsity {}: must be in [0, 1]", s);
  Context context(DeviceOptions{.ordinal = options.ordinal});
  GpuBenchReport report;
  report.gpu = context.info().name;
  report.driver = driver_version();
  report.read_gbps = measure_read_gbps(context);
  LinearBench bench(context, options, report.read_gbps);
  for (const GpuBenchShape& shape : options.shapes)
    bench.run(shape, [&](GpuBenchRow&& row) {
      if (on_row) on_row(row);
      report.rows.push_back(std::move(row));
    });
  return report;
}

}  // namespace spinfer
