#include "models/build_model.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/check.h"
#include "models/checkpoint.h"
#include "models/checkpoint_tools.h"

namespace spinfer {
namespace {

/// Returns the bytes to the device's account when the last owner of the weight lets go.
std::shared_ptr<const void> accounted(Device& device, int64_t bytes) {
  device.account(MemoryUse::weights, bytes);
  return {&device, [bytes](Device* d) { d->account(MemoryUse::weights, -bytes); }};
}

class Builder {
 public:
  Builder(const ModelConfig& config, const WeightSource& source, Device& device, ThreadPool& pool,
          Shard shard, const LoadOptions& options)
      : config_(config),
        source_(source),
        device_(device),
        pool_(pool),
        shard_(shard),
        options_(options),
        total_(plan_weights(config, 0, shard).dense_bytes) {}

  Model build() {
    const WeightTable table = weight_table(config_);
    set_sizes(table);
    make_embeddings(table);
    model_.project_out = linear(table.project_out, Packing::never);
    for (const LayerSpec& spec : table.layers) make_layer(spec);
    model_.final_norm = norm(table.final_norm);
    make_head(table);
    return std::move(model_);
  }

  Model build_embeddings() {
    const WeightTable table = weight_table(config_);
    set_sizes(table);
    make_embeddings(table);
    return std::move(model_);
  }

  Model build_layer(int index) {
    const WeightTable table = weight_table(config_);
    set_sizes(table);
    make_layer(table.layers[size_t(index)]);
    return std::move(model_);
  }

 private:
  enum class Packing { if_sparse, never };

  void set_sizes(const WeightTable& table) {
    model_.config = config_;
    model_.shard = shard_;
    const ShardSizes mine(config_, shard_);
    model_.q_heads = int(mine.q_size / config_.head_dim);
    model_.kv_heads = int(mine.kv_size / config_.head_dim);
    model_.ffn_size = mine.ffn;
    model_.vocab_shard = mine.vocab.size();
    model_.report.parameters = table.parameters();
    const auto inv_freq = config_.rope_inv_freq();
    model_.inv_freq = DeviceArray<float>(device_, int64_t(inv_freq.size()), MemoryUse::workspace);
    model_.inv_freq.upload(inv_freq.data(), int64_t(inv_freq.size()));
  }

  void make_embeddings(const WeightTable& table) {
    model_.embedding = upload(table.embedding);
    model_.positions = upload(table.positions);
    model_.project_in = linear(table.project_in, Packing::never);
  }

  void make_layer(const LayerSpec& spec) {
    LayerWeights layer;
    layer.attn_norm = norm(spec.attn_norm);
    layer.mlp_norm = norm(spec.mlp_norm);
    layer.qkv = layer_linear(spec.qkv);
    layer.attn_out = layer_linear(spec.attn_out);
    layer.mlp_in = layer_linear(spec.mlp_in);
    layer.mlp_out = layer_linear(spec.mlp_out);
    layer.qkv_products = products(layer.qkv, layer.attn_norm);
    layer.mlp_in_products = products(layer.mlp_in, layer.mlp_norm);
    model_.layers.push_back(std::move(layer));
  }

  void count(int64_t dense_bytes, int64_t packed_bytes, int64_t device_bytes) {
    model_.report.dense_bytes += dense_bytes;
    model_.report.packed_bytes += packed_bytes;
    model_.report.device_bytes += device_bytes;
    done_ += dense_bytes;
    if (options_.progress) options_.progress(done_, total_);
  }

  DeviceArray<Half> upload(const TensorSpec& spec) {
    if (spec.name.empty()) return {};
    DeviceArray<Half> array(device_, spec.rows * std::max<int64_t>(spec.cols, 1), MemoryUse::weights);
    if (source_.fill && spec.cols > 0) {
      source_.fill(spec.name, WeightSource::Kind::table, spec.cols, {0, spec.rows}, {0, spec.cols},
                   array.data());
    } else {
      const DenseMatrix host = source_.tensor(spec);
      array.upload(host.data, host.m * host.k);
    }
    const int64_t bytes = 2 * array.size();
    count(bytes, bytes, bytes);
    return array;
  }

  const Half* upload_small(const TensorSpec& spec) {
    if (spec.name.empty()) return nullptr;
    model_.small.push_back(upload(spec));
    return model_.small.back().data();
  }
  NormWeights norm(const NormSpec& spec) {
    return {upload_small(spec.gain), upload_small(spec.bias), largest(spec.gain)};
  }
  /// The largest magnitude; 1 where that is zero or no number.
  float largest(const TensorSpec& spec) const {
    if (spec.name.empty()) return 1;
    const DenseMatrix host = source_.tensor(spec);
    float most = 0;
    for (int64_t i = 0; i < host.m * host.k; ++i) most = std::max(most, std::abs(to_float(host.data[i])));
    return most > 0 && std::isfinite(most) ? most : 1;
  }

  /// What `w` needs to be left a layer norm, if it can be.
  NormProducts products(const LinearWeight& w, const NormWeights& norm) {
    if (config_.norm != NormKind::layer || !config_.norm_before || !norm.gain || !norm.bias ||
        shard_.world > 1 || !device_.ops().defers_norm(device_.context(), w.view, w.view, 1))
      return {};
    const auto product = [&](const Linear& view, const Half* x) {
      DeviceArray<float> y(device_, view.m, MemoryUse::weights);
      device_.ops().logits(device_.context(), {.w = view, .x = x, .n = 1, .logits = y.data()});
      return y;
    };
    Linear without_bias = w.view;
    without_bias.bias = nullptr;
    NormProducts result{product(without_bias, norm.gain), product(w.view, norm.bias)};
    count(0, 0, int64_t(sizeof(float)) * (result.gain.size() + result.bias.size()));
    return result;
  }

  LinearWeight layer_linear(const LinearSpec& spec) {
    LinearWeight weight = linear(spec, Packing::if_sparse);
    model_.report.linear_weights += weight.view.m * weight.view.k;
    model_.report.linear_nonzeros += weight.nonzeros;
    ++(weight.view.is_dense() ? model_.report.dense_linears : model_.report.sparse_linears);
    return weight;
  }

  /// This rank's part of a linear, resident.
  LinearWeight linear(const LinearSpec& spec, Packing packing) {
    if (spec.parts.empty()) return {};
    const auto bias = make_bias(spec);
    const Half* host_bias = bias ? bias->data() : nullptr;
    LinearWeight weight =
        source_.fill ? filled(spec, packing, host_bias) : uploaded(spec, packing, host_bias);
    const int64_t bias_bytes = bias ? int64_t(2 * bias->size()) : 0;
    weight.storage.push_back(bias);  // the CPU reads it where it is
    weight.storage.push_back(accounted(device_, weight.device_bytes + bias_bytes));
    count(weight.dense_bytes + bias_bytes, weight.packed_bytes + bias_bytes,
          weight.device_bytes + bias_bytes);
    return weight;
  }

  LinearWeight uploaded(const LinearSpec& spec, Packing packing, const Half* bias) {
    const Range cols = share_of(spec.cols, spec.k, config_, shard_);
    std::vector<HostMatrix> blocks;
    for (const LinearPart& part : spec.parts) {
      blocks.push_back(
          source_.block(part.name, part.m, spec.k, share_of(part.rows, part.m, config_, shard_), cols));
    }
    const auto is_dense = [](const HostMatrix& b) { return std::holds_alternative<DenseMatrix>(b); };
    const bool host = device_.ops().host;  // reads the weights where they are
    if (!host && std::all_of(blocks.begin(), blocks.end(), is_dense))
      return copied(blocks, packing, bias, spec.gated);
    return device_.ops().prepare_linear(device_.context(), stack(std::move(blocks), packing), bias,
                                        spec.gated);
  }

  /// Dense parts are copied one below the other to the device and packed there.
  LinearWeight copied(const std::vector<HostMatrix>& blocks, Packing packing, const Half* bias, bool gated) {
    const int64_t k = std::get<DenseMatrix>(blocks.front()).k;
    int64_t m = 0;
    for (const HostMatrix& block : blocks) m += std::get<DenseMatrix>(block).m;
    Half* out = scratch(m * k);
    for (const HostMatrix& block : blocks) {
      const auto& part = std::get<DenseMatrix>(block);
      device_.ops().upload(device_.context(), out, part.data, size_t(part.m * k) * sizeof(Half));
      out += part.m * k;
    }
    return from_scratch(m, k, packing, bias, gated);
  }

  /// Device memory for one matrix at a time.
  Half* scratch(int64_t size) {
    if (size > scratch_.size()) {
      scratch_ = {};
      scratch_ = DeviceArray<Half>(device_, size, MemoryUse::workspace);
    }
    return scratch_.data();
  }
  LinearWeight from_scratch(int64_t m, int64_t k, Packing packing, const Half* bias, bool gated) {
    constexpr double kNever = 2;  // more than all of it zero
    const bool pack = !options_.dense && packing == Packing::if_sparse;
    return device_.ops().prepare_from_device(device_.context(), scratch_.data(), m, k,
                                             pack ? options_.min_sparsity : kNever, bias, gated);
  }

  /// The parts are written one below the other on the device and packed there.
  LinearWeight filled(const LinearSpec& spec, Packing packing, const Half* bias) {
    const Range cols = share_of(spec.cols, spec.k, config_, shard_);
    int64_t m = 0;
    for (const LinearPart& part : spec.parts) m += share_of(part.rows, part.m, config_, shard_).size();
    Half* out = scratch(m * cols.size());
    const auto kind = packing == Packing::if_sparse ? WeightSource::Kind::linear : WeightSource::Kind::table;
    for (const LinearPart& part : spec.parts) {
      const Range rows = share_of(part.rows, part.m, config_, shard_);
      source_.fill(part.name, kind, spec.k, rows, cols, out);
      out += rows.size() * cols.size();
    }
    return from_scratch(m, cols.size(), packing, bias, spec.gated);
  }

  /// Null where there is none, or where it is another rank's to add: rank 0 adds a row-parallel layer's bias.
  std::shared_ptr<const std::vector<Half>> make_bias(const LinearSpec& spec) {
    if (!spec.bias || (spec.cols != Share::all && shard_.rank != 0)) return nullptr;
    auto bias = std::make_shared<std::vector<Half>>();
    for (const LinearPart& part : spec.parts) {
      const DenseMatrix whole = source_.tensor({part.name + ".bias", part.m, 0});
      const Range rows = share_of(part.rows, part.m, config_, shard_);
      bias->insert(bias->end(), whole.data + rows.begin, whole.data + rows.end);
    }
    return bias;
  }

  /// One matrix of the parts, packed if one of them is or if enough of it is zero, unless all are to be
  /// dense.
  HostMatrix stack(std::vector<HostMatrix> blocks, Packing packing) {
    const auto is_packed = [](const HostMatrix& b) { return std::holds_alternative<TcaBmeMatrix>(b); };
    const bool pack = !options_.dense && packing == Packing::if_sparse;
    if (pack && std::any_of(blocks.begin(), blocks.end(), is_packed)) {
      std::vector<TcaBmeMatrix> packed;
      for (const HostMatrix& b : blocks) {
        packed.push_back(is_packed(b) ? std::get<TcaBmeMatrix>(b) : encode(std::get<DenseMatrix>(b), pool_));
      }
      return packed.size() == 1 ? packed.front() : stack_rows(packed, pool_);
    }
    const DenseMatrix dense = stack_dense(std::move(blocks));
    const double weights = double(dense.m) * double(dense.k);
    if (pack && double(count_nonzeros(dense, pool_)) <= (1 - options_.min_sparsity) * weights)
      return encode(dense, pool_);
    return dense;
  }

  DenseMatrix stack_dense(std::vector<HostMatrix> blocks) {
    std::vector<DenseMatrix> parts;
    int64_t m = 0;
    for (const HostMatrix& b : blocks) {
      const auto* packed = std::get_if<TcaBmeMatrix>(&b);
      parts.push_back(packed ? decode(packed->view(), pool_) : std::get<DenseMatrix>(b));
      m += parts.back().m;
    }
    if (parts.size() == 1) return parts.front();
    const int64_t k = parts.front().k;
    const bool together = std::adjacent_find(parts.begin(), parts.end(), [](const auto& a, const auto& b) {
                            return a.data + a.m * a.k != b.data || a.storage != b.storage;
                          }) == parts.end();
    if (together) return {m, k, parts.front().data, parts.front().storage};
    const auto halves = make_halves(m * k);
    int64_t row = 0;
    for (const DenseMatrix& part : parts) {
      pool_.parallel_for(part.m,
                         [&](int64_t r) { std::copy_n(part.data + r * k, k, halves.get() + (row + r) * k); });
      row += part.m;
    }
    return {m, k, halves.get(), halves};
  }

  /// A tied head reads the embedding's memory, unless it is to be packed.
  void make_head(const WeightTable& table) {
    const Packing packing = options_.pack_head ? Packing::if_sparse : Packing::never;
    if (!config_.tied_head) {
      model_.head = linear(table.head, packing);
      return;
    }
    const Range rows = ShardSizes(config_, shard_).vocab;
    if (options_.pack_head && !options_.dense) {
      DenseMatrix part = source_.tensor(table.embedding);
      part.data += rows.begin * part.k;
      part.m = rows.size();
      HostMatrix matrix = stack({part}, packing);
      if (std::holds_alternative<TcaBmeMatrix>(matrix)) {
        model_.head = device_.ops().prepare_linear(device_.context(), matrix, nullptr, false);
        model_.head.storage.push_back(accounted(device_, model_.head.device_bytes));
        count(0, model_.head.packed_bytes, model_.head.device_bytes);
        return;
      }
    }
    model_.head.view.m = rows.size();
    model_.head.view.k = config_.embed_size;
    model_.head.view.dense = model_.embedding.data() + rows.begin * config_.embed_size;
  }

  const ModelConfig& config_;
  const WeightSource& source_;
  Device& device_;
  ThreadPool& pool_;
  const Shard shard_;
  const LoadOptions& options_;
  const int64_t total_;
  int64_t done_ = 0;
  DeviceArray<Half> scratch_;  // the largest matrix so far
  Model model_;
};

}  // namespace

Model build_model(const ModelConfig& config, const WeightSource& source, Device& device, ThreadPool& pool,
                  Shard shard, const LoadOptions& options) {
  check_tensor_parallel(config, shard.world);
  return Builder(config, source, device, pool, shard, options).build();
}

Model build_embeddings(const ModelConfig& config, const WeightSource& source, Device& device,
                       ThreadPool& pool) {
  return Builder(config, source, device, pool, {}, {.dense = true}).build_embeddings();
}

Model build_layer(const ModelConfig& config, const WeightSource& source, Device& device, ThreadPool& pool,
                  int index) {
  return Builder(config, source, device, pool, {}, {.dense = true}).build_layer(index);
}

}  // namespace spinfer
