// Checked CUDA, cuBLAS and NCCL calls. A failure throws `Error`: "file:line: call: meaning (code)".
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <string_view>

namespace spinfer::cuda {

/// The part of a `__FILE__` below the project root, so that messages do not depend on where it was built.
constexpr std::string_view source_path(std::string_view file) {
  const size_t folder = file.rfind('/', file.rfind('/') == std::string_view::npos ? 0 : file.rfind('/') - 1);
  const size_t parent =
      folder == std::string_view::npos || folder == 0 ? folder : file.rfind('/', folder - 1);
  return parent == std::string_view::npos ? file : file.substr(parent + 1);
}

[[noreturn]] void throw_cuda_error(cudaError_t status, const char* call, std::string_view file, int line);
[[noreturn]] void throw_cublas_error(cublasStatus_t status, const char* call, std::string_view file,
                                     int line);

inline void check_call(cudaError_t status, const char* call, const char* file, int line) {
  if (status != cudaSuccess) throw_cuda_error(status, call, source_path(file), line);
}
inline void check_call(cublasStatus_t status, const char* call, const char* file, int line) {
  if (status != CUBLAS_STATUS_SUCCESS) throw_cublas_error(status, call, source_path(file), line);
}

}  // namespace spinfer::cuda

/// Every CUDA runtime and cuBLAS call goes through this. (A macro for the call's text, file and line.)
#define SPINFER_CUDA_CHECK(call) ::spinfer::cuda::check_call((call), #call, __FILE__, __LINE__)
/// After a `<<<>>>` launch: reports a bad configuration at once; a fault inside the kernel shows at the next
/// sync.
#define SPINFER_LAUNCH_CHECK(kernel) \
  ::spinfer::cuda::check_call(cudaGetLastError(), "launch of " kernel, __FILE__, __LINE__)
