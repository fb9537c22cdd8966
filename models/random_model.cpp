// Random weights, made on the device. Each is a function of (seed, tensor, position) alone, so every rank of
// any tensor-parallel group makes its slice of the same model, and every backend the same model.
#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "kernels/check.h"
#include "models/build_model.h"
#include "models/checkpoint.h"

namespace spinfer {
namespace {

uint64_t hash(uint64_t seed, const std::string& name) {
  uint64_t h = random_bits(seed, 1);
  for (const char c : name) h = random_bits(h ^ uint8_t(c), 0);
  return h;
}

/// The standard normal distribution as 2^14 equally probable values.
using Quantiles = std::array<float, size_t{1} << kRandomValueBits>;

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
  RandomWeights(double sparsity, uint64_t seed, Device& device)
      : zero_below_(uint64_t(std::ldexp(sparsity, 32))),
        seed_(seed),
        device_(device),
        quantiles_(normal_quantiles()) {}

  /// Norm gains 1, biases 0.
  static DenseMatrix vector(const TensorSpec& spec) {
    const auto halves = make_halves(spec.rows);
    std::fill_n(halves.get(), spec.rows, to_half(spec.name.ends_with(".bias") ? 0.0f : 1.0f));
    return {1, spec.rows, halves.get(), halves};
  }

  /// Gaussian of scale 1/sqrt(k); of a linear, some are zero.
  void fill(const std::string& name, WeightSource::Kind kind, int64_t k, Range rows, Range cols, Half* out) {
    device_.ops().fill_random(device_.context(),
                              {.out = out,
                               .rows = rows.size(),
                               .cols = cols.size(),
                               .k = k,
                               .first_row = rows.begin,
                               .first_col = cols.begin,
                               .key = hash(seed_, name),
                               .zero_below = kind == WeightSource::Kind::linear ? zero_below_ : 0,
                               .values = values_of(k)});
  }

 private:
  const Half* values_of(int64_t k) {
    DeviceArray<Half>& array = values_[k];
    if (array.size() == 0) {
      std::vector<Half> values(quantiles_->size());
      for (size_t i = 0; i < values.size(); ++i) {
        const Half h = to_half((*quantiles_)[i] / std::sqrt(float(k)));
        values[i] = is_zero(h) ? Half{1} : h;  // only the mask makes zeros
      }
      array = DeviceArray<Half>(device_, int64_t(values.size()), MemoryUse::workspace);
      array.upload(values.data(), array.size());
    }
    return array.data();
  }

  uint64_t zero_below_;  ///< of 2^32
  uint64_t seed_;
  Device& device_;
  std::unique_ptr<const Quantiles> quantiles_;
  std::map<int64_t, DeviceArray<Half>> values_;  ///< the quantiles at the scale of each k
};

}  // namespace

Model random_model(const ModelConfig& config, double sparsity, uint64_t seed, Device& device,
                   ThreadPool& pool, Shard shard, const LoadOptions& options) {
  check(sparsity >= 0 && sparsity <= 1, "sparsity {} of random weights must be from 0 to 1", sparsity);
  RandomWeights weights(sparsity, seed, device);
  const WeightSource source{
      .tensor = RandomWeights::vector,
      .block = {},
      .fill = [&](const std::string& name, WeightSource::Kind kind, int64_t k, Range rows, Range cols,
                  Half* out) { weights.fill(name, kind, k, rows, cols, out); },
  };
  return build_model(config, source, device, pool, shard, options);
}

}  // namespace spinfer
