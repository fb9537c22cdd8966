// `spinfer prune`: dense checkpoint in, pruned checkpoint out, packed or dense.
#include <spdlog/spdlog.h>

#include <memory>

#include "engine/apps/calibration_text.h"
#include "engine/apps/command.h"
#include "engine/apps/interrupt.h"
#include "engine/apps/output.h"
#include "engine/apps/progress.h"
#include "engine/apps/written_checkpoint.h"
#include "kernels/check.h"
#include "kernels/device.h"
#include "models/checkpoint_tools.h"

namespace spinfer {
namespace {

struct PruneFlags {
  OutputFlags output;
  CalibrationFlags calibration;
  std::string method = "magnitude";
  std::string scope = "row";
  std::string allocation = "uniform";
  double sparsity = 0.5;
  std::vector<double> layer_sparsity;
  double dampening = 0.01;
  double owl_outlier = 5;
  double owl_lambda = 0.08;
  bool dense_output = false;
};

PruneMethod method_of(const PruneFlags& flags) {
  if (flags.method == "wanda") return PruneMethod::wanda;
  return flags.method == "sparsegpt" ? PruneMethod::sparsegpt : PruneMethod::magnitude;
}

void check_flags(const PruneFlags& flags, int layers) {
  const bool owl = flags.allocation == "owl";
  const auto refuse = [](const std::string& message) { throw UsageError("prune: " + message); };
  if ((flags.method != "magnitude" || owl) && !flags.calibration.given()) {
    refuse(fmt::format("{} needs text to calibrate with: give --calibration FILE",
                       owl ? "--allocation owl" : "--method " + flags.method));
  }
  if (!flags.calibration.file.empty() && !flags.calibration.tokens_file.empty())
    refuse("give one of --calibration and --calibration-tokens");
  if (flags.method != "magnitude" && flags.scope != "row")
    refuse(fmt::format("--scope {} is for --method magnitude; {} compares weights its own way", flags.scope,
                       flags.method));
  if (owl && !flags.layer_sparsity.empty()) refuse("give one of --layer-sparsity and --allocation owl");
  if (!flags.layer_sparsity.empty() && int(flags.layer_sparsity.size()) != layers) {
    refuse(fmt::format("--layer-sparsity: {} numbers are given, this model has {} layers",
                       flags.layer_sparsity.size(), layers));
  }
}

/// Everything but magnitude without calibration text: returns what the report adds.
nlohmann::json prune_with_text(const PruneFlags& flags, const ModelConfig& config, PruneOptions& options,
                               ThreadPool& pool) {
  const std::string& model = flags.output.common.model;
  const CalibrationSamples samples = read_samples(flags.calibration, model, config);
  Device device(select_backend(flags.output.common.device),
                {.ordinal = 0, .threads = flags.output.common.threads});
  if (flags.allocation == "owl") {
    ProgressBar bar("measuring outliers", ProgressUnit::items);
    OwlOptions owl{flags.sparsity, flags.owl_outlier, flags.owl_lambda, bar.callback()};
    options.layer_sparsity = owl_sparsity(model, owl, samples, device, pool);
  }
  ProgressBar bar("pruning", ProgressUnit::items);
  options.progress = bar.callback();
  if (options.method == PruneMethod::magnitude) {
    prune_magnitude(model, flags.output.out, options, pool);
  } else {
    prune_calibrated(model, flags.output.out, options, samples, device, pool);
  }
  return {{"calibration_samples", samples.size()}, {"calibration_length", samples.front().size()}};
}

void run_prune(const PruneFlags& flags) {
  flags.output.common.check_one_rank("prune");
  set_interrupt_grace(kOutputInterruptGrace);
  flags.output.common.apply_log_level();
  const ModelConfig config = load_config(flags.output.common.model);
  check_flags(flags, config.layers);
  ThreadPool pool(flags.output.common.threads);
  PruneOptions options;
  options.method = method_of(flags);
  options.sparsity = flags.sparsity;
  options.layer_sparsity = flags.layer_sparsity;
  options.scope = flags.scope == "row" ? PruneScope::row : PruneScope::layer;
  options.dampening = flags.dampening;
  options.dense_output = flags.dense_output;
  options.min_sparsity = flags.output.min_sparsity;
  options.note = [](const std::string& text) { spdlog::info("{}", text); };
  nlohmann::json report = {{"method", flags.method}};
  if (options.method != PruneMethod::magnitude || flags.allocation == "owl") {
    report.update(prune_with_text(flags, config, options, pool));
  } else {
    ProgressBar bar("pruning", ProgressUnit::bytes);
    options.progress = bar.callback();
    prune_magnitude(flags.output.common.model, flags.output.out, options, pool);
  }
  if (!options.layer_sparsity.empty()) report["layer_sparsity"] = options.layer_sparsity;
  report_written(flags.output, flags.dense_output ? Written::dense : Written::packed, pool, report);
}

void add_method_flags(CLI::App& command, PruneFlags& flags) {
  command
      .add_option("--method", flags.method,
                  "magnitude: drop the smallest |w|; wanda: the smallest |w|·‖input‖ of each row; sparsegpt: "
                  "layer-wise second-order update")
      ->check(CLI::IsMember({"magnitude", "wanda", "sparsegpt"}))
      ->capture_default_str();
  command.add_option("--sparsity", flags.sparsity, "share of zeros")
      ->check(number_in(0, 1, "0..1"))
      ->capture_default_str();
  add_list(command, "--layer-sparsity", flags.layer_sparsity, "share of zeros of each layer: 0.4,0.5,…",
           number_in(0, 1, "0..1"));
  command
      .add_option("--allocation", flags.allocation, "uniform, or owl: layers with more outliers keep more")
      ->check(CLI::IsMember({"uniform", "owl"}))
      ->capture_default_str();
  command.add_option("--owl-outlier", flags.owl_outlier, "outliers score above this many means of the layer")
      ->check(number_in(0, 1e6, "(0, 1e6]", true))
      ->capture_default_str();
  command.add_option("--owl-lambda", flags.owl_lambda, "half the range of the layers' sparsities")
      ->check(number_in(0, 0.5, "0..0.5"))
      ->capture_default_str();
  command.add_option("--dampening", flags.dampening, "of sparsegpt's Hessian, in means of its diagonal")
      ->check(number_in(0, 100, "0..100"))
      ->capture_default_str();
  command
      .add_option("--scope", flags.scope,
                  "of magnitude: the smallest of each row, or of the whole layer's matrix")
      ->check(CLI::IsMember({"row", "layer"}))
      ->capture_default_str();
}

}  // namespace

void add_prune(CLI::App& app) {
  auto flags = std::make_shared<PruneFlags>();
  CLI::App* command = app.add_subcommand("prune", "dense directory → pruned directory, packed");
  flags->output.add_to(*command, {.device = true, .threads = true});
  add_method_flags(*command, *flags);
  command->add_flag("--dense-output", flags->dense_output,
                    "write dense safetensors (zeros included) others can read");
  flags->calibration.add_to(*command);
  command->callback([flags] { run_prune(*flags); });
}

}  // namespace spinfer
