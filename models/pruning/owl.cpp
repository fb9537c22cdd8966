// owl_sparsity: layer-wise sparsity from the share of outliers, after "Outlier Weighed Layerwise Sparsity"
// (Yin et al. 2024). The dense model is run once.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/check.h"
#include "models/build_model.h"
#include "models/checkpoint.h"
#include "models/checkpoint_tools.h"
#include "models/pruning/owl.h"
#include "models/pruning/wanda.h"
#include "models/rewrite_checkpoint.h"

namespace spinfer {
namespace {

/// A matrix of a layer and what its inputs were.
struct Scored {
  DenseMatrix matrix;
  const std::vector<double>* squares;
};

double outlier_share(const Checkpoint& checkpoint, const LayerSpec& spec, LayerStatistics& statistics,
                     double outlier, ThreadPool& pool) {
  std::vector<std::vector<double>> squares;
  std::vector<Scored> matrices;
  double sum = 0;
  int64_t count = 0, above = 0;
  const auto linears = spec.linears();
  squares.reserve(linears.size());
  for (size_t l = 0; l < linears.size(); ++l) {
    const LinearSpec& linear = *linears[l];
    squares.push_back(statistics.inputs()[l].squares.download(linear.k));
    for (const LinearPart& part : linear.parts) {
      const std::string name = part.name + ".weight";
      matrices.push_back(
          {as_dense(checkpoint.block(name, part.m, linear.k, {0, part.m}, {0, linear.k}), pool),
           &squares[l]});
      const DenseMatrix& w = matrices.back().matrix;
      sum += wanda_score_sum(w.data, w.m, w.k, squares[l], pool);
      count += w.m * w.k;
      check(std::isfinite(sum), "{}: its inputs are not finite on the calibration text (fp16 overflow?)",
            name);
    }
  }
  for (const Scored& s : matrices) {
    above += wanda_scores_above(s.matrix.data, s.matrix.m, s.matrix.k, *s.squares,
                                outlier * sum / double(count), pool);
  }
  return double(above) / double(count);
}

}  // namespace

std::vector<double> allocate_by_outliers(const std::vector<double>& shares, double sparsity, double lambda) {
  const auto [low, high] = std::minmax_element(shares.begin(), shares.end());
  const double range = *high - *low;
  std::vector<double> kept;
  for (const double share : shares) kept.push_back(range > 0 ? (share - *low) / range * 2 * lambda : 0);
  const double mean = std::accumulate(kept.begin(), kept.end(), 0.0) / double(kept.size());
  // Moved by what makes the mean right where some layers stop at 0 or 1.
  const auto moved_by = [&](double shift) {
    std::vector<double> result;
    for (const double more : kept) result.push_back(std::clamp(sparsity - (more - mean) + shift, 0.0, 1.0));
    return result;
  };
  const auto mean_of = [](const std::vector<double>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0) / double(values.size());
  };
  const std::vector<double> unmoved = moved_by(0);
  if (std::abs(mean_of(unmoved) - sparsity) < 1e-12) return unmoved;
  double low_shift = -2, high_shift = 2;
  for (int i = 0; i < 60; ++i) {
    const double middle = (low_shift + high_shift) / 2;
    (mean_of(moved_by(middle)) < sparsity ? low_shift : high_shift) = middle;
  }
  return moved_by(high_shift);
}

std::vector<double> owl_sparsity(const std::filesystem::path& in, const OwlOptions& options,
                                 const CalibrationSamples& samples, Device& device, ThreadPool& pool) {
  const ModelConfig config = load_config(in);
  check_samples(samples, config);
  const Checkpoint checkpoint(in, pool);
  const WeightSource source = checkpoint_source(checkpoint, config);
  const WeightTable table = weight_table(config);
  Calibration calibration(device, build_embeddings(config, source, device, pool), samples);
  int64_t done = 0;
  const int64_t total = int64_t{config.layers} * calibration.batches();
  std::vector<double> shares;
  for (int i = 0; i < config.layers; ++i) {
    const LayerSpec& spec = table.layers[size_t(i)];
    const Model layer = build_layer(config, source, device, pool, i);
    LayerStatistics statistics(device, spec, LayerStatistics::Gram::none);
    calibration.run(layer, Calibration::After::advance, statistics.observer(layer.layers.front()), [&] {
      if (options.progress) options.progress(++done, total);
    });
    shares.push_back(outlier_share(checkpoint, spec, statistics, options.outlier, pool));
  }
  return allocate_by_outliers(shares, options.sparsity, options.lambda);
}

}  // namespace spinfer
