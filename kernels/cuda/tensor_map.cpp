#include "kernels/cuda/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include "kernels/check.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/format/strip_stream.h"

namespace spinfer::cuda {
namespace {

PFN_cuTensorMapEncodeTiled_v12000 find_encode_function() {
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

/// A constant of the process: the driver's function.
PFN_cuTensorMapEncodeTiled_v12000 encode_function() {
  static const auto function = find_encode_function();
  return function;
}

}  // namespace

bool make_activation_map(CUtensorMap& map, const Half* x, int n, int64_t k, int rows) {
  if (k % 8 || reinterpret_cast<uintptr_t>(x) % 16) return false;
  const cuuint64_t sizes[2] = {cuuint64_t(k), cuuint64_t(n)};
  const cuuint64_t strides[1] = {cuuint64_t(k) * sizeof(Half)};
  const cuuint32_t box[2] = {kBlockColumns, cuuint32_t(rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult status =
      encode_function()(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, const_cast<Half*>(x), sizes, strides, box,
                        steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(status == CUDA_SUCCESS, "cuTensorMapEncodeTiled of x [{}][{}] failed ({})", n, k, int(status));
  return true;
}

CUtensorMap make_swizzled_map(const char* what, const void* base, const std::array<int64_t, 3>& sizes,
                              const std::array<int64_t, 2>& strides, const std::array<int, 3>& box) {
  const cuuint64_t global_sizes[3] = {cuuint64_t(sizes[0]), cuuint64_t(sizes[1]), cuuint64_t(sizes[2])};
  const cuuint64_t global_strides[2] = {cuuint64_t(strides[0]), cuuint64_t(strides[1])};
  const cuuint32_t box_sizes[3] = {cuuint32_t(box[0]), cuuint32_t(box[1]), cuuint32_t(box[2])};
  const cuuint32_t steps[3] = {1, 1, 1};
  CUtensorMap map;
  const CUresult status = encode_function()(
      &map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3, const_cast<void*>(base), global_sizes, global_strides,
      box_sizes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(status == CUDA_SUCCESS, "cuTensorMapEncodeTiled of {} [{}][{}][{}] failed ({})", what, sizes[2],
        sizes[1], sizes[0], int(status));
  return map;
}

}  // namespace spinfer::cuda
