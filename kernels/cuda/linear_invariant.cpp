#include "kernels/cuda/linear_invariant.h"

#include <algorithm>

#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/dense_linear.h"
#include "kernels/cuda/linear.h"

namespace spinfer::cuda {
namespace {

constexpr int kPiece = kDecodeTokens;

/// The workspace of a dense piece: x and y of kPiece tokens, always here so that neither n nor the caller's
/// alignment leads to another algorithm, then what our epilogue needs.
struct DensePiece {
  size_t x_bytes, y_bytes, scratch_bytes;

  DensePiece(int64_t m, int64_t k)
      : x_bytes(align(size_t(kPiece) * size_t(k) * sizeof(Half))),
        y_bytes(align(size_t(kPiece) * size_t(m) * sizeof(float))),
        scratch_bytes(dense_scratch_bytes(m, kPiece)) {}
  size_t bytes() const { return x_bytes + y_bytes + scratch_bytes; }

 private:
  static size_t align(size_t bytes) { return (bytes + 255) / 256 * 256; }
};

void copy(Context& context, void* to, const void* from, size_t bytes) {
  SPINFER_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, context.stream()));
}

}  // namespace

size_t invariant_workspace_bytes(const Linear& weight) {
  return weight.is_dense() ? DensePiece(weight.m, weight.k).bytes() : 0;
}

void dense_invariant(Context& context, const DenseArgs& args) {
  const DensePiece layout(args.m, args.k);
  char* workspace = static_cast<char*>(context.workspace(layout.bytes()));
  DenseArgs piece = args;
  piece.n = kPiece;
  piece.tuned = false;
  piece.x = reinterpret_cast<const Half*>(workspace);
  piece.y = workspace + layout.x_bytes;
  piece.scratch = workspace + layout.x_bytes + layout.y_bytes;
  const size_t y_size = args.fp32_out ? sizeof(float) : sizeof(Half);
  for (int begin = 0; begin < args.n; begin += kPiece) {
    const auto rows = size_t(std::min(kPiece, args.n - begin));
    copy(context, workspace, args.x + int64_t(begin) * args.k, rows * size_t(args.k) * sizeof(Half));
    if (args.residual) {
      copy(context, piece.y, args.residual + int64_t(begin) * args.m, rows * size_t(args.m) * sizeof(Half));
      piece.residual = static_cast<const Half*>(piece.y);
    }
    dense_linear(context, piece);
    copy(context, static_cast<char*>(args.y) + size_t(begin) * size_t(args.m) * y_size, piece.y,
         rows * size_t(args.m) * y_size);
  }
}

void linear_invariant(Context& context, const LinearArgs& args) {
  if (args.w.is_dense()) {
    DenseArgs dense;
    dense.m = args.w.m;
    dense.k = args.w.k;
    dense.n = args.n;
    dense.w = args.w.dense;
    dense.x = args.x;
    dense.bias = args.w.bias;
    dense.act = args.act;
    dense.residual = args.residual;
    dense.y = args.y;
    return dense_invariant(context, dense);
  }
  for (int begin = 0; begin < args.n; begin += kPiece) {
    LinearArgs piece{.w = args.w,
                     .x = args.x + int64_t(begin) * args.w.k,
                     .n = std::min(kPiece, args.n - begin),
                     .act = args.act,
                     .residual = args.residual ? args.residual + int64_t(begin) * args.w.m : nullptr,
                     .y = args.y + int64_t(begin) * args.w.m};
    linear_with(context, piece, choose_linear_kernel(problem_of(piece.w, piece.n), context.facts()));
  }
}

}  // namespace spinfer::cuda
