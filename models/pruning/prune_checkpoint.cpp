// prune_magnitude and prune_calibrated: every linear of a checkpoint pruned, one layer at a time.
#include <xxhash.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "kernels/check.h"
#include "models/build_model.h"
#include "models/checkpoint.h"
#include "models/checkpoint_tools.h"
#include "models/model_directory.h"
#include "models/pruning/magnitude.h"
#include "models/pruning/prune_state.h"
#include "models/pruning/wanda.h"
#include "models/rewrite_checkpoint.h"

namespace spinfer {
namespace {

namespace fs = std::filesystem;

void check_options(const PruneOptions& options, int layers) {
  const auto share = [](double value, const char* what) {
    check(value >= 0 && value <= 1, "{} {} must be from 0 to 1", what, value);
  };
  share(options.sparsity, "sparsity");
  share(options.min_sparsity, "min_sparsity");
  for (const double sparsity : options.layer_sparsity) share(sparsity, "sparsity");
  check(options.layer_sparsity.empty() || int(options.layer_sparsity.size()) == layers,
        "{} sparsities are given for {} layers", options.layer_sparsity.size(), layers);
  check(options.dampening >= 0, "dampening {} must not be negative", options.dampening);
}

double sparsity_of(const PruneOptions& options, int layer) {
  return options.layer_sparsity.empty() ? options.sparsity : options.layer_sparsity[size_t(layer)];
}

Rewriting rewriting_of(const PruneOptions& options) {
  Rewriting rewriting;
  rewriting.output = options.dense_output ? Rewriting::Output::dense : Rewriting::Output::packed;
  rewriting.min_sparsity = options.min_sparsity;
  return rewriting;
}

/// A copy that may be changed.
std::shared_ptr<Half[]> copy_of(const DenseMatrix& matrix) {
  const auto halves = make_halves(matrix.m * matrix.k);
  std::copy_n(matrix.data, matrix.m * matrix.k, halves.get());
  return halves;
}

/// What a run was asked for: another one may take over its layers if all of this is the same.
nlohmann::json request_of(const fs::path& in, const PruneOptions& options, const CalibrationSamples& samples,
                          int layers, const Device& device) {
  uint64_t hash = 0;
  int64_t tokens = 0;
  for (const auto& sample : samples) {
    hash = XXH64(sample.data(), sample.size() * sizeof(int32_t), hash);
    tokens += int64_t(sample.size());
  }
  std::vector<double> sparsity;
  for (int layer = 0; layer < layers; ++layer) sparsity.push_back(sparsity_of(options, layer));
  nlohmann::json files;
  for (const auto& entry : fs::directory_iterator(in)) {
    if (!entry.is_regular_file()) continue;
    files[entry.path().filename().string()] = {entry.file_size(),
                                               entry.last_write_time().time_since_epoch().count()};
  }
  return {{"version", 1},
          {"input", fs::canonical(in).string()},
          {"files", files},
          {"method", options.method == PruneMethod::wanda ? "wanda" : "sparsegpt"},
          {"sparsity", sparsity},
          {"dampening", options.dampening},
          {"samples", samples.size()},
          {"tokens", tokens},
          {"hash", hash},
          {"backend", device.ops().name}};
}

/// Prunes the linears of one layer by what they saw of the calibration text.
class LayerPruner {
 public:
  LayerPruner(const Checkpoint& checkpoint, const PruneOptions& options, Device& device, ThreadPool& pool)
      : checkpoint_(checkpoint), options_(options), device_(device), pool_(pool) {}

  /// The parts of `linear`, added to `pruned`. Spoils `input`.
  void prune(const LinearSpec& linear, LayerStatistics::Input& input, double sparsity,
             PrunedLayer& pruned) const {
    const std::vector<double> squares = input.squares.download(linear.k);
    check_inputs(linear, squares);
    const bool second_order = options_.method == PruneMethod::sparsegpt;
    if (second_order) {
      check(
          device_.ops().inverse_factor(
              device_.context(), {.gram = input.gram.data(), .k = linear.k, .dampening = options_.dampening}),
          "{}.weight: the Hessian of its inputs cannot be factored with a dampening of {}; use a larger one, "
          "or more calibration text",
          linear.parts.front().name, options_.dampening);
    }
    for (const LinearPart& part : linear.parts) {
      const std::string name = part.name + ".weight";
      const DenseMatrix source =
          as_dense(checkpoint_.block(name, part.m, linear.k, {0, part.m}, {0, linear.k}), pool_);
      const auto halves = copy_of(source);
      if (second_order) {
        sparsegpt(name, halves.get(), source, input.gram.data(), squares, sparsity);
      } else {
        prune_wanda(halves.get(), source.m, source.k, squares, sparsity, pool_);
      }
      pruned[name] = {source.m, source.k, halves.get(), halves};
    }
  }

 private:
  void check_inputs(const LinearSpec& linear, const std::vector<double>& squares) const {
    const std::string name = linear.parts.front().name + ".weight";
    for (size_t i = 0; i < squares.size(); ++i) {
      check(std::isfinite(squares[i]),
            "{}: its input {} is not finite on the calibration text (fp16 overflow?)", name, i);
    }
    const auto dead = std::count(squares.begin(), squares.end(), 0.0);
    check(
        options_.method == PruneMethod::wanda || dead < linear.k,
        "{}: all of its {} inputs are zero on the calibration text, which says nothing of its weights then; "
        "use other text, or --method magnitude",
        name, linear.k);
    if (dead > 0 && options_.note)
      options_.note(
          fmt::format("{}: {} of {} inputs are zero on the whole calibration text", name, dead, linear.k));
  }

  /// In fp32 on the device, rounded to fp16 once. Weights of inputs that were always zero become zero first.
  void sparsegpt(const std::string& name, Half* halves, const DenseMatrix& matrix, const float* factor,
                 const std::vector<double>& squares, double sparsity) const {
    const int64_t count = matrix.m * matrix.k;
    std::vector<float> wide(static_cast<size_t>(count));
    pool_.parallel_for(matrix.m, [&](int64_t row) {
      for (int64_t i = 0; i < matrix.k; ++i)
        wide[size_t(row * matrix.k + i)] = squares[size_t(i)] != 0 ? to_float(halves[row * matrix.k + i]) : 0;
    });
    DeviceArray<float> w(device_, count, MemoryUse::workspace);
    w.upload(wide.data(), count);
    device_.ops().sparsegpt(
        device_.context(),
        {.w = w.data(), .factor = factor, .m = matrix.m, .k = matrix.k, .sparsity = sparsity});
    wide = w.download(count);
    pool_.parallel_for(matrix.m, [&](int64_t row) {
      for (int64_t i = row * matrix.k; i < (row + 1) * matrix.k; ++i) {
        halves[i] = to_half(wide[size_t(i)]);
        check((halves[i].bits & 0x7c00u) != 0x7c00u,
              "{}: the corrected element {} is {}, beyond fp16's range", name, i, wide[size_t(i)]);
      }
    });
  }

  const Checkpoint& checkpoint_;
  const PruneOptions& options_;
  Device& device_;
  ThreadPool& pool_;
};

/// Steps of the progress bar: batches run twice and linears pruned, in each layer.
class Steps {
 public:
  Steps(const PruneOptions& options, int64_t total) : options_(options), total_(total) {}
  void add(int64_t count = 1) {
    done_ += count;
    if (options_.progress) options_.progress(done_, total_);
  }

 private:
  const PruneOptions& options_;
  int64_t total_;
  int64_t done_ = 0;
};

WeightSource pruned_source(const PrunedLayer& pruned, const WeightSource& source) {
  return {.tensor = source.tensor,
          .block = [&pruned](const std::string& name, int64_t, int64_t, Range, Range) -> HostMatrix {
            return pruned.at(name + ".weight");
          }};
}

PrunedLayer load_layer(const PruneState& state, int layer, const LayerSpec& spec, ThreadPool& pool) {
  PrunedLayer pruned;
  for (const LinearSpec* linear : spec.linears()) {
    for (const LinearPart& part : linear->parts) {
      const std::string name = part.name + ".weight";
      pruned[name] = state.load(layer, name, part.m, linear->k, pool);
    }
  }
  return pruned;
}

/// Leaves all pruned layers in `state`.
void prune_layers(const fs::path& in, const ModelConfig& config, const PruneOptions& options,
                  const CalibrationSamples& samples, PruneState& state, Device& device, ThreadPool& pool) {
  const Checkpoint checkpoint(in, pool);
  const WeightSource source = checkpoint_source(checkpoint, config);
  const WeightTable table = weight_table(config);
  Calibration calibration(device, build_embeddings(config, source, device, pool), samples);
  const LayerPruner pruner(checkpoint, options, device, pool);
  const int linears = int(table.layers.front().linears().size());
  Steps steps(options, int64_t{config.layers} * (2 * calibration.batches() + linears));
  for (int i = 0; i < config.layers; ++i) {
    const LayerSpec& spec = table.layers[size_t(i)];
    PrunedLayer pruned;
    if (i < state.layers()) {
      pruned = load_layer(state, i, spec, pool);
      steps.add(calibration.batches() + linears);
    } else {
      const Model layer = build_layer(config, source, device, pool, i);
      const bool second_order = options.method == PruneMethod::sparsegpt;
      LayerStatistics statistics(device, spec,
                                 second_order ? LayerStatistics::Gram::all : LayerStatistics::Gram::none);
      calibration.run(layer, Calibration::After::keep, statistics.observer(layer.layers.front()),
                      [&] { steps.add(); });
      for (int l = 0; l < linears; ++l, steps.add())
        pruner.prune(*spec.linears()[size_t(l)], statistics.inputs()[size_t(l)], sparsity_of(options, i),
                     pruned);
      state.save(pruned);
    }
    if (i + 1 == config.layers) break;
    const Model layer = build_layer(config, pruned_source(pruned, source), device, pool, i);
    calibration.run(layer, Calibration::After::advance, {}, [&] { steps.add(); });
  }
}

/// Looks at what is not pruned but written at the end: what is wrong with it would be found when all layers
/// are done.
void check_what_comes_last(const fs::path& in, const ModelConfig& config, ThreadPool& pool) {
  side_files_of(in);
  const Checkpoint checkpoint(in, pool);
  for (const TensorSpec& spec : weight_table(config).other_tensors()) checkpoint.tensor(spec);
}

}  // namespace

void prune_magnitude(const fs::path& in, const fs::path& out, const PruneOptions& options, ThreadPool& pool) {
  check_options(options, load_config(in).layers);
  Rewriting rewriting = rewriting_of(options);
  rewriting.progress = options.progress;
  rewriting.change = [&](int layer, const std::string&, const HostMatrix& matrix) -> HostMatrix {
    const DenseMatrix source = as_dense(matrix, pool);
    const auto halves = copy_of(source);
    prune_matrix(halves.get(), source.m, source.k, sparsity_of(options, layer), options.scope, pool);
    return DenseMatrix{source.m, source.k, halves.get(), halves};
  };
  rewrite_checkpoint(in, out, rewriting, pool);
}

void prune_calibrated(const fs::path& in, const fs::path& out, const PruneOptions& options,
                      const CalibrationSamples& samples, Device& device, ThreadPool& pool) {
  const ModelConfig config = load_config(in);
  check_options(options, config.layers);
  check_samples(samples, config);
  check_output(in, out);
  check_what_comes_last(in, config, pool);
  PruneState state(check_new_directory(out), request_of(in, options, samples, config.layers, device));
  if (state.layers() > 0 && options.note) {
    options.note(fmt::format("{}: going on after {} of {} layers of an interrupted run", out.string(),
                             state.layers(), config.layers));
  }
  prune_layers(in, config, options, samples, state, device, pool);
  Rewriting rewriting = rewriting_of(options);
  rewriting.progress = [&](int64_t, int64_t) {
    if (options.progress) options.progress(1, 1);  // lets an interruption through
  };
  rewriting.change = [&](int layer, const std::string& name, const HostMatrix& matrix) -> HostMatrix {
    const auto [m, k] = std::visit(
        [](const auto& w) {
          if constexpr (requires { w.view(); }) {
            return std::pair(w.view().m, w.view().k);
          } else {
            return std::pair(w.m, w.k);
          }
        },
        matrix);
    return state.load(layer, name, m, k, pool);
  };
  rewrite_checkpoint(in, out, rewriting, pool);
  state.remove();
}

}  // namespace spinfer
