#include "models/rewrite_checkpoint.h"

#include <algorithm>

#include "kernels/check.h"
#include "models/build_model.h"
#include "models/checkpoint.h"
#include "models/checkpoint_tools.h"
#include "models/model_directory.h"
#include "models/weight_table.h"

namespace spinfer {
namespace {

struct Rewrite {
  const Checkpoint& checkpoint;
  ModelDirectoryWriter& writer;
  ThreadPool& pool;
  const Rewriting& what;
  std::function<void(int64_t)> advance;  ///< dense bytes of what was written
};

void write_tensor(const Rewrite& rewrite, const TensorSpec& spec) {
  const DenseMatrix tensor = rewrite.checkpoint.tensor(spec);
  rewrite.writer.add(spec.name, tensor,
                     spec.cols > 0 ? std::vector{spec.rows, spec.cols} : std::vector{spec.rows});
  rewrite.advance(2 * tensor.m * tensor.k);
}

void write_linear(const Rewrite& rewrite, int layer, const LinearSpec& linear) {
  std::vector<std::string> names;
  std::vector<HostMatrix> parts;
  int64_t nonzeros = 0;
  for (const LinearPart& part : linear.parts) {
    names.push_back(part.name + ".weight");
    parts.push_back(rewrite.what.change(
        layer, names.back(),
        rewrite.checkpoint.block(names.back(), part.m, linear.k, {0, part.m}, {0, linear.k})));
    const auto* packed = std::get_if<TcaBmeMatrix>(&parts.back());
    nonzeros +=
        packed ? packed->view().nonzeros : count_nonzeros(std::get<DenseMatrix>(parts.back()), rewrite.pool);
  }
  const bool sparse =
      double(nonzeros) <= (1 - rewrite.what.min_sparsity) * double(linear.m()) * double(linear.k);
  for (HostMatrix& part : parts) {
    if (rewrite.what.output == Rewriting::Output::dense || !sparse) {
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

}  // namespace

void check_output(const std::filesystem::path& in, const std::filesystem::path& out) {
  std::error_code error;
  check(!std::filesystem::equivalent(in, out, error), "{}: input and output are the same directory",
        out.string());
  check_new_directory(out);
}

DenseMatrix as_dense(const HostMatrix& matrix, ThreadPool& pool) {
  const auto* packed = std::get_if<TcaBmeMatrix>(&matrix);
  return packed ? decode(packed->view(), pool) : std::get<DenseMatrix>(matrix);
}

void rewrite_checkpoint(const std::filesystem::path& in, const std::filesystem::path& out,
                        const Rewriting& rewriting, ThreadPool& pool) {
  check_output(in, out);
  const ModelConfig config = load_config(in);
  const WeightTable table = weight_table(config);
  const Checkpoint checkpoint(in, pool);
  check_nothing_left_out(checkpoint, config);
  ModelDirectoryWriter writer(out, header_capacity_for(table));
  writer.copy_side_files(in);
  int64_t done = 0;
  const int64_t total = 2 * table.parameters();
  const Rewrite rewrite{checkpoint, writer, pool, rewriting, [&](int64_t bytes) {
                          done += bytes;
                          if (rewriting.progress) rewriting.progress(done, total);
                        }};
  for (const TensorSpec& spec : table.other_tensors()) write_tensor(rewrite, spec);
  for (int layer = 0; layer < config.layers; ++layer) {
    for (const LinearSpec* linear : table.layers[size_t(layer)].linears())
      write_linear(rewrite, layer, *linear);
  }
  writer.finish();
}

void pack_checkpoint(const std::filesystem::path& in, const std::filesystem::path& out, double min_sparsity,
                     ThreadPool& pool, const std::function<void(int64_t done, int64_t total)>& progress) {
  check(min_sparsity >= 0 && min_sparsity <= 1, "min_sparsity {} must be from 0 to 1", min_sparsity);
  Rewriting rewriting;
  rewriting.min_sparsity = min_sparsity;
  rewriting.change = [](int, const std::string&, HostMatrix matrix) { return matrix; };
  rewriting.progress = progress;
  rewrite_checkpoint(in, out, rewriting, pool);
}

void unpack_checkpoint(const std::filesystem::path& in, const std::filesystem::path& out, ThreadPool& pool,
                       const std::function<void(int64_t done, int64_t total)>& progress) {
  Rewriting rewriting;
  rewriting.output = Rewriting::Output::dense;
  rewriting.change = [](int, const std::string&, HostMatrix matrix) { return matrix; };
  rewriting.progress = progress;
  rewrite_checkpoint(in, out, rewriting, pool);
}

}  // namespace spinfer
