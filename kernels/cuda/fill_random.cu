// fill_random: weights for benchmarks. Bound by writing 2 bytes an element.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"

namespace spinfer::cuda {
namespace {

constexpr int kThreads = 256;

/// Grid: (pieces of a row, rows). The values are in shared memory: neighbouring lanes want random ones.
__global__ void fill_random_kernel(FillRandomArgs a) {
  __shared__ __half values[1 << kRandomValueBits];
  wait_for_predecessor();
  for (int i = int(threadIdx.x); i < 1 << kRandomValueBits; i += kThreads)
    values[i] = device_half(a.values)[i];
  __syncthreads();  // all values are there
  for (int64_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
    __half* out = device_half(a.out) + row * a.cols;
    const uint64_t first = uint64_t((a.first_row + row) * a.k + a.first_col);
    for (int64_t col = int64_t{blockIdx.x} * kThreads + threadIdx.x; col < a.cols;
         col += int64_t{gridDim.x} * kThreads) {
      const uint64_t bits = random_bits(a.key, first + uint64_t(col));
      const bool zero = (bits & 0xffffffffu) < a.zero_below;
      out[col] = zero ? __ushort_as_half(0) : values[bits >> (64 - kRandomValueBits)];
    }
  }
}

}  // namespace

void fill_random(DeviceContext& opaque, const FillRandomArgs& args) {
  if (args.rows == 0 || args.cols == 0) return;
  Context& context = context_of(opaque);
  context.activate();
  const int64_t pieces = (args.cols + kThreads - 1) / kThreads;
  const unsigned across = unsigned(pieces < 4 ? pieces : 4);
  const int64_t down = args.rows < 2 * context.facts().sm_count ? args.rows : 2 * context.facts().sm_count;
  launch(context, "fill_random", fill_random_kernel, {dim3(across, unsigned(down)), dim3(kThreads)}, args);
}

}  // namespace spinfer::cuda
