#include <cassert>

#include "kernels/cpu/linear_kernels.h"

namespace spinfer::cpu {

SimdLevel best_simd_level() {
#ifdef SPINFER_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("popcnt");  // every CPU with these has F16C
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vbmi2");
  if (avx512) return SimdLevel::avx512;
  if (avx2) return SimdLevel::avx2;
#endif
  return SimdLevel::portable;
}

const LinearKernels& linear_kernels(SimdLevel level) {
  assert(level <= best_simd_level());
#ifdef SPINFER_X86
  if (level == SimdLevel::avx512) return kAvx512Kernels;
  if (level == SimdLevel::avx2) return kAvx2Kernels;
#endif
  (void)level;
  return kPortableKernels;
}

}  // namespace spinfer::cpu
