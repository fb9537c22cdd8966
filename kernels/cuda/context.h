// One GPU as the ops see it: stream, library handles, workspace, facts for plans, memory.
#pragma once

#include <cublasLt.h>
#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/backend.h"
#include "kernels/cuda/spmm_plan.h"
#include "kernels/gpu_footprint.h"

namespace spinfer::cuda {

class DensePlans;
class OpState;
class WeightUpload;

/// What plans need to know of a GPU; a plain value, so that plans are tested without one.
struct GpuFacts {
  int sm_count = 132;
  int compute_capability = 90;  ///< 10·major + minor
  int64_t l2_bytes = 60 << 20;
  int shared_per_block = 227 * 1024;  ///< the opt-in maximum
};

/// Behind a CUDA `DeviceContext*`. One host thread uses it at a time; all work is queued on `stream()`.
class Context {
 public:
  explicit Context(const DeviceOptions& options);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  int ordinal() const { return ordinal_; }
  bool deterministic() const { return deterministic_; }
  const GpuFacts& facts() const { return facts_; }
  cudaStream_t stream() const { return stream_; }
  cublasHandle_t blas() const { return blas_; }
  cublasLtHandle_t lt() const { return lt_; }
  DensePlans& dense_plans() { return *dense_plans_; }
  OpState& op_state() { return *op_state_; }
  DeviceInfo info() const;

  /// Makes this GPU the calling thread's current one. Ops call it first.
  void activate() const;
  /// True between begin and end of a stream capture: nothing may allocate, synchronise or be timed then.
  bool capturing() const;

  /// Plain cudaMalloc, 256-byte aligned. Throws `Error` with the bytes asked for and free.
  void* allocate(size_t bytes) const;
  void release(void* memory) const noexcept;
  /// Like `allocate`, freed with the last owner. Must not outlive the context.
  std::shared_ptr<void> allocate_shared(size_t bytes) const;

  /// Scratch for one op: valid until the next op is queued. Growing it frees the old block, which recorded
  /// graphs may point to: `memory_version` changes, and they are recorded anew. Growth during a capture
  /// throws.
  void* workspace(size_t bytes);
  size_t workspace_bytes() const { return workspace_bytes_; }
  uint64_t memory_version() const { return memory_version_; }

  /// Queues a copy of host memory, however large; `host` may be reused on return.
  void upload(void* device, const void* host, size_t bytes);

  void account_graph(int64_t bytes) { info_.graph_bytes += bytes; }
  /// Ops whose bit (1 << OpKind) is set are not run, see Backend::leave_out.
  uint32_t left_out = 0;
  /// The SpMM kernels let slots of shared memory go in the one way that compute-sanitizer's racecheck follows
  /// (piece_ring.cuh). Much slower; for tests.
  bool for_racecheck = false;
  /// [kFlags], zero between kernels: whoever raises one sees to it that it is lowered in the same launch.
  static constexpr int kFlags = 4096;
  int* flags() const { return flags_; }
  /// Partial sums of the decode SpMM (spmm_stream.cu), kPartialBytesPerBlock a multiprocessor, all ones
  /// between kernels. Allocated on the first call, which must not come during a capture.
  void* partial_sums();
  /// Scratch lent to cuBLAS and cuBLASLt calls.
  static constexpr size_t kBlasWorkspaceBytes = size_t(kGpuBlasWorkspaceBytes);
  void* blas_workspace() const { return blas_workspace_; }

 private:
  size_t partial_sum_bytes() const { return size_t(facts_.sm_count) * size_t(kPartialBytesPerBlock); }

  int ordinal_ = 0;
  bool deterministic_ = false;
  GpuFacts facts_;
  DeviceInfo info_;
  cudaStream_t stream_ = nullptr;
  cublasHandle_t blas_ = nullptr;
  cublasLtHandle_t lt_ = nullptr;
  void* blas_workspace_ = nullptr;
  int* flags_ = nullptr;
  void* partial_sums_ = nullptr;
  void* workspace_ = nullptr;
  size_t workspace_bytes_ = 0;
  uint64_t memory_version_ = 0;
  std::unique_ptr<DensePlans> dense_plans_;
  std::unique_ptr<OpState> op_state_;
  std::unique_ptr<WeightUpload> weight_upload_;  ///< from the first large upload on
};

/// Devices this process can use; 0 without a driver.
int device_count();

/// `DeviceContext` stays an incomplete type here: each backend has its own class behind the pointer.
inline Context& context_of(DeviceContext& opaque) {
  return reinterpret_cast<Context&>(opaque);
}
inline DeviceContext& opaque(Context& context) {
  return reinterpret_cast<DeviceContext&>(context);
}

}  // namespace spinfer::cuda
