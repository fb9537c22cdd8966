#include "kernels/cuda/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include "kernels/check.h"
#include "kernels/cuda/cuda_check.h"

namespace spinfer::cuda {
namespace {

PFN_cuTensorMapEncodeTiled_v12000 encode_function() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  SPINFER_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                      cudaEnableDefault, &found));
#else
  SPINFER_CUDA_CHECK(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found));
#endif
  check(function && found == cudaDriverEntryPointSuccess, "the CUDA driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

}  // namespace

bool make_activation_map(CUtensorMap& map, const Half* x, int n, int64_t k, int columns, int rows) {
  if (k % 8 || reinterpret_cast<uintptr_t>(x) % 16) return false;
  static const auto encode = encode_function();  // a constant of the process: the driver's function
  const cuuint64_t sizes[2] = {cuuint64_t(k), cuuint64_t(n)};
  const cuuint64_t strides[1] = {cuuint64_t(k) * sizeof(Half)};
  const cuuint32_t box[2] = {cuuint32_t(columns), cuuint32_t(rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult status =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, const_cast<Half*>(x), sizes, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(status == CUDA_SUCCESS, "cuTensorMapEncodeTiled of x [{}][{}] failed ({})", n, k, int(status));
  return true;
}

}  // namespace spinfer::cuda
