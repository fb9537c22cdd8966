// pack and prune: a checkpoint in, the same model with other linears out, one stacked linear in memory at a
// time.
#include <algorithm>

#include "kernels/check.h"
#include "models/checkpoint.h"
#include "models/checkpoint_tools.h"
#include "models/model_directory.h"
#include "models/prune.h"
#include "models/weight_table.h"

namespace spinfer {
namespace {

enum class Output { packed, dense };

struct Rewrite {
  const Checkpoint& checkpoint;
  ModelDirectoryWriter& writer;
  ThreadPool& pool;
  Output output;
  double min_sparsity;
  std::function<HostMatrix(HostMatrix)> change;  ///< what is done to each matrix
  std::function<void(int64_t)> advance;          ///< dense bytes of what was written
};

void write_tensor(const Rewrite& rewrite, const TensorSpec& spec) {
  const DenseMatrix tensor = rewrite.checkpoint.tensor(spec);
  rewrite.writer.add(spec.name, tensor,
                     spec.cols > 0 ? std::vector{spec.rows, spec.cols} : std::vector{spec.rows});
  rewrite.advance(2 * tensor.m * tensor.k);
}

DenseMatrix as_dense(const HostMatrix& matrix, ThreadPool& pool) {
  const auto* packed = std::get_if<TcaBmeMatrix>(&matrix);
  return packed ? decode(packed->view(), pool) : std::get<DenseMatrix>(matrix);
}

void write_linear(const Rewrite& rewrite, const LinearSpec& linear) {
  std::vector<std::string> names;
  std::vector<HostMatrix> parts;
  int64_t nonzeros = 0;
  for (const LinearPart& part : linear.parts) {
    names.push_back(part.name + ".weight");
    parts.push_back(
        rewrite.change(rewrite.checkpoint.block(names.back(), part.m, linear.k, {0, part.m}, {0, linear.k})));
    const auto* packed = std::get_if<TcaBmeMatrix>(&parts.back());
    nonzeros +=
        packed ? packed->view().nonzeros : count_nonzeros(std::get<DenseMatrix>(parts.back()), rewrite.pool);
  }
  const bool sparse = double(nonzeros) <= (1 - rewrite.min_sparsity) * double(linear.m()) * double(linear.k);
  for (HostMatrix& part : parts) {
    if (rewrite.output == Output::dense || !sparse) {
      part = as_dense(part, rewrite.pool);
    } else if (const auto* dense = std::get_if<DenseMatrix>(&part)) {
      part = encode(*dense, rewrite.pool);
    }
  }
  rewrite.writer.add_linear(names, parts);
  rewrite.advance(2 * linear.m() * linear.k);
  if (!linear.bias) return;
  for (const LinearPart& part : linear.parts) write_tensor(rewrite, {part.name + ".bias", part.m, 0});
}

void rewrite_checkpoint(const std::filesystem::path& in, const std::filesystem::path& out, Output output,
                        double min_sparsity, const std::function<HostMatrix(HostMatrix)>& change,
                        ThreadPool& pool, const std::function<void(int64_t done, int64_t total)>& progress) {
  std::error_code error;
  check(!std::filesystem::equivalent(in, out, error), "{}: input and output are the same directory",
        out.string());
  const ModelConfig config = load_config(in);
  const WeightTable table = weight_table(config);
  ModelDirectoryWriter writer(out, header_capacity_for(table));
  const Checkpoint checkpoint(in, pool);
  int64_t done = 0;
  const int64_t total = 2 * table.parameters();
  const Rewrite rewrite{checkpoint, writer, pool, output, min_sparsity, change, [&](int64_t bytes) {
                          done += bytes;
                          if (progress) progress(done, total);
                        }};
  for (const TensorSpec& spec : table.other_tensors()) write_tensor(rewrite, spec);
  for (const LayerSpec& layer : table.layers) {
    for (const LinearSpec* linear : layer.linears()) write_linear(rewrite, *linear);
  }
  writer.copy_side_files(in);
  writer.finish();
}

}  // namespace

void pack_checkpoint(const std::filesystem::path& in, const std::filesystem::path& out, double min_sparsity,
                     ThreadPool& pool, const std::function<void(int64_t done, int64_t total)>& progress) {
  check(min_sparsity >= 0 && min_sparsity <= 1, "min_sparsity {} must be from 0 to 1", min_sparsity);
  const auto keep = [](HostMatrix matrix) { return matrix; };
  rewrite_checkpoint(in, out, Output::packed, min_sparsity, keep, pool, progress);
}

void prune_magnitude(const std::filesystem::path& in, const std::filesystem::path& out,
                     const PruneOptions& options, ThreadPool& pool) {
  check(options.sparsity >= 0 && options.sparsity <= 1, "sparsity {} must be from 0 to 1", options.sparsity);
  check(options.min_sparsity >= 0 && options.min_sparsity <= 1, "min_sparsity {} must be from 0 to 1",
        options.min_sparsity);
  const auto prune = [&](const HostMatrix& matrix) -> HostMatrix {
    const DenseMatrix source = as_dense(matrix, pool);
    const auto pruned = make_halves(source.m * source.k);
    std::copy_n(source.data, source.m * source.k, pruned.get());
    prune_matrix(pruned.get(), source.m, source.k, options.sparsity, options.scope, pool);
    return DenseMatrix{source.m, source.k, pruned.get(), pruned};
  };
  rewrite_checkpoint(in, out, options.dense_output ? Output::dense : Output::packed, options.min_sparsity,
                     prune, pool, options.progress);
}

}  // namespace spinfer
