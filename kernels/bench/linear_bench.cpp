#include "kernels/bench/linear_bench.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <string_view>

#include "kernels/bench/read_loop.h"
#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/thread_pool.h"

namespace spinfer {
namespace {

constexpr LinearShape kPaperShapes[] = {
    {8192, 29568},  {4096, 4096},  {32000, 5120}, {32000, 8192},  {28672, 8192},  {5120, 5120},
    {5120, 13824},  {3584, 20480}, {4096, 11008}, {13824, 5120},  {8192, 8192},   {18944, 3584},
    {14336, 4096},  {4096, 14336}, {8192, 28672}, {11008, 4096},  {32000, 4096},  {20480, 3584},
    {3584, 18944},  {21504, 7168}, {7168, 7168},  {28672, 7168},  {7168, 28672},  {27648, 9216},
    {9216, 9216},   {36864, 9216}, {9216, 36864}, {12288, 12288}, {36864, 12288}, {49152, 12288},
    {12288, 49152},
};

using Clock = std::chrono::steady_clock;

/// Making the copies of a tiny matrix that exceed the cache would take longer than anybody waits; 4 GB of
/// caches are exceeded from 0.5 MB a matrix on.
constexpr int64_t kMostCopies = 1 << 13;
/// A read loop over less than this measures its own start.
constexpr int64_t kFewestReadableBytes = 1 << 15;

/// Draws from 65,536 nonzero Gaussian samples: as good as fresh ones at fp16's resolution, and fast enough
/// for gigabytes.
class GaussianHalves {
 public:
  explicit GaussianHalves(uint64_t seed) : samples_(65536) {
    std::mt19937_64 rng(seed);
    std::normal_distribution<float> gaussian;
    for (Half& h : samples_) {
      do {
        h = to_half(gaussian(rng));
      } while (is_zero(h));
    }
  }
  Half operator()(uint64_t random16) const { return samples_[random16 & 0xffff]; }

 private:
  std::vector<Half> samples_;
};

/// Gaussian values; each weight is zero with probability `sparsity`.
std::vector<Half> random_halves(int64_t rows, int64_t cols, double sparsity, uint64_t seed,
                                ThreadPool& pool) {
  std::vector<Half> data(size_t(rows * cols));
  const GaussianHalves gaussian(seed);
  const auto threshold = uint64_t(std::llround(sparsity * 0x1p32));
  pool.parallel_for(rows, [&](int64_t row) {
    for (int64_t i = row * cols; i < (row + 1) * cols; ++i) {
      const uint64_t random = random_bits(seed << 40, uint64_t(i));
      data[size_t(i)] = random >> 32 < threshold ? Half{} : gaussian(random);
    }
  });
  return data;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

int64_t default_cold_bytes() {
#ifdef _SC_LEVEL3_CACHE_SIZE
  const int64_t cache = std::max({sysconf(_SC_LEVEL3_CACHE_SIZE), sysconf(_SC_LEVEL2_CACHE_SIZE), 0L});
#else
  const int64_t cache = 0;
#endif
  return std::max<int64_t>(int64_t{512} << 20, 4 * cache);
}

int64_t copies_of(int64_t pair_bytes, int64_t cold_bytes) {
  return std::min(kMostCopies, (cold_bytes + pair_bytes - 1) / pair_bytes);
}

/// Copies of one matrix, dense and packed, resident on the device; launches go round.
class Copies {
 public:
  Copies(Device& device, const LinearShape& shape, double sparsity, int64_t cold_bytes, uint64_t seed,
         ThreadPool& pool) {
    {
      const std::vector<Half> data = random_halves(shape.m, shape.k, sparsity, seed, pool);
      original_ = encode({shape.m, shape.k, data.data(), nullptr}, pool);
    }
    const int64_t pair = 2 * shape.m * shape.k + original_.view().bytes();
    const int64_t count = copies_of(pair, cold_bytes);
    for (int64_t i = 0; i < count; ++i) {
      // decode and slice_cols both give memory of their own; prepare_linear on the CPU uses it where it is.
      dense_.push_back(prepare(device, decode(original_.view(), pool)));
      packed_.push_back(prepare(device, slice_cols(original_, 0, shape.k, pool)));
    }
  }

  const TcaBmeView& original() const { return original_.view(); }
  const LinearWeight& next(bool dense) {
    size_t& turn = dense ? next_dense_ : next_packed_;
    const std::vector<LinearWeight>& weights = dense ? dense_ : packed_;
    return weights[turn++ % weights.size()];
  }
  const LinearWeight& next_to_read() { return dense_[next_read_++ % dense_.size()]; }

 private:
  static LinearWeight prepare(Device& device, const HostMatrix& matrix) {
    return device.ops().prepare_linear(device.context(), matrix, nullptr, false);
  }
  TcaBmeMatrix original_;
  std::vector<LinearWeight> dense_, packed_;
  size_t next_dense_ = 0, next_packed_ = 0, next_read_ = 0;
};

/// ‖Y − reference‖ / ‖reference‖ over 32 rows and up to 8 tokens, the reference accumulated in double.
double relative_error(const TcaBmeView& w, const std::vector<Half>& x, const std::vector<Half>& y, int n,
                      ThreadPool& pool) {
  const DenseMatrix dense = decode(w, pool);
  const int64_t rows = std::min<int64_t>(32, w.m);
  const int tokens = std::min(n, 8);
  double error = 0, norm = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = i * (w.m - 1) / std::max<int64_t>(1, rows - 1);
    for (int t = 0; t < tokens; ++t) {
      double sum = 0;
      for (int64_t k = 0; k < w.k; ++k) {
        sum += double(to_float(dense.data[row * w.k + k])) * double(to_float(x[size_t(t * w.k + k)]));
      }
      const double difference = double(to_float(y[size_t(t * w.m + row)])) - sum;
      error += difference * difference;
      norm += sum * sum;
    }
  }
  return norm > 0 ? std::sqrt(error / norm) : std::sqrt(error);
}

/// Times one (shape, sparsity, tokens).
class RowBench {
 public:
  RowBench(Device& device, Copies& copies, int n, const LinearBenchOptions& options, ThreadPool& pool)
      : device_(device),
        copies_(copies),
        n_(n),
        options_(options),
        pool_(pool),
        m_(copies.original().m),
        k_(copies.original().k),
        host_x_(random_halves(n, k_, 0.0, options.seed + 99, pool)),
        x_(device, n * k_, MemoryUse::workspace),
        y_(device, n * m_, MemoryUse::workspace) {
    x_.upload(host_x_.data(), n * k_);
  }

  LinearBenchRow run(double sparsity) {
    LinearBenchRow row{};
    row.m = m_;
    row.k = k_;
    row.n = n_;
    row.sparsity = sparsity;
    launch(copies_.next(false));
    row.rel_error = relative_error(copies_.original(), host_x_, y_.download(n_ * m_), n_, pool_);
    const int launches = calibrate();
    for (int b = 0; b < options_.batches; ++b) {
      row.read_gbps_batches.push_back(options_.read_gbps > 0 ? options_.read_gbps : read_batch(launches));
      row.dense_us_batches.push_back(batch(launches, true));
      row.us_batches.push_back(batch(launches, false));
    }
    row.us = median(row.us_batches);
    row.dense_us = median(row.dense_us_batches);
    row.read_gbps = median(row.read_gbps_batches);
    row.speedup = row.dense_us / row.us;
    const double activations = 2.0 * n_ * double(m_ + k_),
                 packed = double(copies_.original().bytes()) + activations;
    row.gbps = packed / row.us * 1e-3;
    row.dense_gbps = (2.0 * double(m_) * double(k_) + activations) / row.dense_us * 1e-3;
    const bool readable = options_.read_gbps > 0 || 2 * m_ * k_ >= kFewestReadableBytes;
    row.floor_pct = readable ? 100.0 * row.gbps / row.read_gbps : std::numeric_limits<double>::quiet_NaN();
    return row;
  }

 private:
  void launch(const LinearWeight& weight) {
    device_.ops().linear(device_.context(),
                         {weight.view, x_.data(), n_, Activation::none, nullptr, y_.data()});
  }
  double batch(int launches, bool dense) {  // µs a launch
    device_.ops().synchronize(device_.context());
    const auto begin = Clock::now();
    for (int i = 0; i < launches; ++i) launch(copies_.next(dense));
    device_.ops().synchronize(device_.context());
    return std::chrono::duration<double, std::micro>(Clock::now() - begin).count() / launches;
  }
  double read_batch(int launches) {
    const auto bytes = double(m_ * k_) * sizeof(Half);
    const auto begin = Clock::now();
    for (int i = 0; i < launches; ++i) {
      const Half* data = copies_.next_to_read().view.dense;
      sink_ = sink_ ^ read_all({reinterpret_cast<const uint64_t*>(data), size_t(m_ * k_ / 4)}, pool_);
    }
    return bytes * launches / std::chrono::duration<double>(Clock::now() - begin).count() * 1e-9;
  }
  /// Launches a batch needs to last batch_seconds, from one dense launch after a warm-up.
  int calibrate() {
    batch(1, true);
    const double us = batch(1, true);
    return int(std::clamp(std::ceil(options_.batch_seconds * 1e6 / us), 1.0, 10000.0));
  }

  Device& device_;
  Copies& copies_;
  int n_;
  const LinearBenchOptions& options_;
  ThreadPool& pool_;
  int64_t m_, k_;
  std::vector<Half> host_x_;
  DeviceArray<Half> x_, y_;
  volatile uint64_t sink_ = 0;
};

void check_options(const LinearBenchOptions& options, bool on_cpu) {
  const auto need = [](bool ok, const std::string& message) {
    if (!ok) throw UsageError(message);
  };
  for (const LinearShape& s : options.shapes) {
    need(s.m >= 1 && s.m <= kMaxDimension && s.k >= 1 && s.k <= kMaxDimension,
         fmt::format("--shapes {}x{}: each size must be 1…{}", s.m, s.k, kMaxDimension));
  }
  for (int n : options.tokens) need(n >= 1 && n <= 65536, fmt::format("-N {}: must be 1…65536", n));
  for (double s : options.sparsities) need(s >= 0 && s <= 1, fmt::format("--sparsity {}: must be 0…1", s));
  need(options.batches >= 1, fmt::format("{} batches: must be at least 1", options.batches));
  need(on_cpu || options.read_gbps > 0, "the read bandwidth of the device must be given");
}

/// Refuses what does not fit before anything is allocated: the copies, the first dense matrix beside them.
void check_memory(Device& device, const LinearShape& shape, double sparsity, int64_t cold_bytes) {
  const double weights = double(shape.m) * double(shape.k);
  const double pair =
      2 * weights + double(tca_bme_bytes(shape.m, shape.k, int64_t((1 - sparsity) * weights)));
  const double need = double(copies_of(int64_t(pair), cold_bytes)) * pair + pair,
               free = double(device.info().free_bytes);
  check(need <= free, "bench of {}x{} at sparsity {} needs {:.1f} GB of memory, {:.1f} GB are free", shape.m,
        shape.k, sparsity, need * 1e-9, free * 1e-9);
}

}  // namespace

std::span<const LinearShape> paper_shapes() {
  return kPaperShapes;
}

std::vector<LinearBenchRow> bench_linear(const Backend& backend, const DeviceOptions& device_options,
                                         const LinearBenchOptions& options) {
  check_options(options, backend.host);
  Device device(backend, device_options);
  ThreadPool pool(device_options.threads);
  const int64_t cold_bytes = options.cold_bytes > 0 ? options.cold_bytes : default_cold_bytes();
  std::vector<LinearBenchRow> rows;
  for (const LinearShape& shape : options.shapes) {
    for (double sparsity : options.sparsities) {
      if (options.progress)
        options.progress(fmt::format("{}x{} sparsity {}: weights", shape.m, shape.k, sparsity));
      check_memory(device, shape, sparsity, cold_bytes);
      Copies copies(device, shape, sparsity, cold_bytes, options.seed, pool);
      for (int n : options.tokens) {
        if (options.progress)
          options.progress(fmt::format("{}x{} sparsity {} N {}", shape.m, shape.k, sparsity, n));
        rows.push_back(RowBench(device, copies, n, options, pool).run(sparsity));
      }
    }
  }
  return rows;
}

}  // namespace spinfer
