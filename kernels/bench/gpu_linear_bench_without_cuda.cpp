#include "kernels/gpu_linear_bench.h"
#include "kernels/check.h"

namespace spinfer {

GpuBenchReport run_gpu_linear_bench(const GpuBenchOptions&, const std::function<void(const GpuBenchRow&)>&) {
  fail("bench kernel --device cuda: this spinfer was built without CUDA; use --device cpu");
}

}  // namespace spinfer
