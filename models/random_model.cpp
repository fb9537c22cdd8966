// Random weights. Each is a function of (seed, tensor, position) alone, so every rank of any tensor-parallel
// group makes its slice of the same model, on any number of threads.
#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/check.h"
#include "models/build_model.h"
#include "models/checkpoint.h"

namespace spinfer {
namespace {

constexpr uint64_t mix(uint64_t z) {  // SplitMix64's output function
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

uint64_t hash(uint64_t seed, const std::string& name) {
  uint64_t h = mix(seed + 0x9e3779b97f4a7c15ull);
  for (const char c : name) h = mix(h ^ uint8_t(c));
  return h;
}

/// The standard normal distribution as 2^14 equally probable values.
constexpr int kQuantileBits = 14;
using Quantiles = std::array<float, size_t{1} << kQuantileBits>;

/// x with Φ(x) = p by Newton's method from the neighbouring quantile.
std::unique_ptr<Quantiles> normal_quantiles() {
  auto table = std::make_unique<Quantiles>();
  const size_t size = table->size();
  double x = 0;
  for (size_t i = size / 2; i < size; ++i) {
    const double p = (double(i) + 0.5) / double(size);
    for (int step = 0; step < 8; ++step) {
      const double error = 0.5 * std::erfc(-x / std::sqrt(2.0)) - p;
      x -= error * std::sqrt(2 * 3.14159265358979323846) * std::exp(x * x / 2);
    }
    (*table)[i] = float(x);
    (*table)[size - 1 - i] = float(-x);
  }
  return table;
}

class RandomWeights {
 public:
  RandomWeights(double sparsity, uint64_t seed, ThreadPool& pool)
      : zero_below_(uint64_t(std::ldexp(sparsity, 32))),
        seed_(seed),
        pool_(pool),
        quantiles_(normal_quantiles()) {}

  /// Norm gains 1, biases 0, tables Gaussian of scale 1/sqrt(columns).
  DenseMatrix tensor(const TensorSpec& spec) const {
    if (spec.cols > 0) return block(spec.name, spec.cols, {0, spec.rows}, {0, spec.cols}, 0);
    const auto halves = make_halves(spec.rows);
    std::fill_n(halves.get(), spec.rows, to_half(spec.name.ends_with(".bias") ? 0.0f : 1.0f));
    return {1, spec.rows, halves.get(), halves};
  }

  DenseMatrix linear(const std::string& name, int64_t k, Range rows, Range cols) const {
    return block(name, k, rows, cols, zero_below_);
  }

 private:
  DenseMatrix block(const std::string& name, int64_t k, Range rows, Range cols, uint64_t zero_below) const {
    std::vector<Half> values(quantiles_->size());
    for (size_t i = 0; i < values.size(); ++i) {
      const Half h = to_half((*quantiles_)[i] / std::sqrt(float(k)));
      values[i] = is_zero(h) ? Half{1} : h;  // only the mask makes zeros
    }
    const uint64_t key = hash(seed_, name);
    const auto halves = make_halves(rows.size() * cols.size());
    pool_.parallel_for(rows.size(), [&](int64_t row) {
      Half* out = halves.get() + row * cols.size();
      const uint64_t first = key + uint64_t((rows.begin + row) * k + cols.begin) * 0x9e3779b97f4a7c15ull;
      for (int64_t col = 0; col < cols.size(); ++col) {
        const uint64_t bits = mix(first + uint64_t(col) * 0x9e3779b97f4a7c15ull);
        const Half value = values[bits >> (64 - kQuantileBits)];
        out[col] = (bits & 0xffffffffu) < zero_below ? Half{} : value;
      }
    });
    return {rows.size(), cols.size(), halves.get(), halves};
  }

  uint64_t zero_below_;  ///< of 2^32
  uint64_t seed_;
  ThreadPool& pool_;
  std::unique_ptr<const Quantiles> quantiles_;
};

}  // namespace

Model random_model(const ModelConfig& config, double sparsity, uint64_t seed, Device& device,
                   ThreadPool& pool, Shard shard, const LoadOptions& options) {
  check(sparsity >= 0 && sparsity <= 1, "sparsity {} of random weights must be from 0 to 1", sparsity);
  const RandomWeights weights(sparsity, seed, pool);
  const WeightSource source{
      .tensor = [&](const TensorSpec& spec) { return weights.tensor(spec); },
      .block = [&](const std::string& name, int64_t, int64_t k, Range rows, Range cols) -> HostMatrix {
        return weights.linear(name, k, rows, cols);
      },
  };
  return build_model(config, source, device, pool, shard, options);
}

}  // namespace spinfer
