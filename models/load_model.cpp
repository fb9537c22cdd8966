#include "kernels/check.h"
#include "models/build_model.h"
#include "models/checkpoint.h"

namespace spinfer {
namespace {

void check_no_extra_bias(const Checkpoint& checkpoint, const ModelConfig& config) {
  for (const LayerSpec& layer : weight_table(config).layers) {
    for (const LinearSpec* linear : layer.linears()) {
      if (linear->bias) continue;
      for (const LinearPart& part : linear->parts) {
        check(!checkpoint.contains(part.name + ".bias"),
              "{}: tensor {}.bias is there but config.json says the layer has no bias",
              checkpoint.directory().string(), part.name);
      }
    }
  }
}

void check_no_extra_layer(const Checkpoint& checkpoint, ModelConfig config) {
  const int layers = config.layers++;
  const LayerSpec beyond = weight_table(config).layers.back();
  for (const LinearSpec* linear : beyond.linears()) {
    for (const LinearPart& part : linear->parts) {
      check(!checkpoint.contains(part.name + ".weight"),
            "{}: tensor {}.weight is there but config.json says num_hidden_layers is {}",
            checkpoint.directory().string(), part.name, layers);
    }
  }
}

}  // namespace

void check_nothing_left_out(const Checkpoint& checkpoint, const ModelConfig& config) {
  check_no_extra_bias(checkpoint, config);
  check_no_extra_layer(checkpoint, config);
}

WeightSource checkpoint_source(const Checkpoint& checkpoint, const ModelConfig& config) {
  check_nothing_left_out(checkpoint, config);
  return {
      .tensor = [&checkpoint](const TensorSpec& spec) { return checkpoint.tensor(spec); },
      .block = [&checkpoint](const std::string& name, int64_t m, int64_t k, Range rows,
                             Range cols) { return checkpoint.block(name + ".weight", m, k, rows, cols); },
  };
}

Model load_model(const std::filesystem::path& dir, const ModelConfig& config, Device& device,
                 ThreadPool& pool, Shard shard, const LoadOptions& options) {
  check_tensor_parallel(config, shard.world);
  return load_model(Checkpoint(dir, pool), config, device, pool, shard, options);
}

Model load_model(const Checkpoint& checkpoint, const ModelConfig& config, Device& device, ThreadPool& pool,
                 Shard shard, const LoadOptions& options) {
  return build_model(config, checkpoint_source(checkpoint, config), device, pool, shard, options);
}

}  // namespace spinfer
