#include "kernels/cuda/context.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/compiled_for.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/dense_linear.h"
#include "kernels/cuda/linear_plan.h"
#include "kernels/cuda/op_state.h"
#include "kernels/cuda/weight_upload.h"
#include "kernels/gpu_footprint.h"

namespace spinfer::cuda {
namespace {

static_assert(kGpuPartialSumBytes == 132 * kPartialBytesPerBlock, "what plans count for an H200");

GpuFacts facts_of(const cudaDeviceProp& properties) {
  GpuFacts facts;
  facts.sm_count = properties.multiProcessorCount;
  facts.compute_capability = properties.major * 10 + properties.minor;
  facts.l2_bytes = properties.l2CacheSize;
  facts.shared_per_block = int(properties.sharedMemPerBlockOptin);
  return facts;
}

/// Devices whose memory this one can map.
std::vector<int> peers_of(int ordinal, int count) {
  std::vector<int> peers;
  for (int other = 0; other < count; ++other) {
    int reaches = 0;
    if (other != ordinal) SPINFER_CUDA_CHECK(cudaDeviceCanAccessPeer(&reaches, ordinal, other));
    if (reaches) peers.push_back(other);
  }
  return peers;
}

}  // namespace

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // no driver or no device: not an error, and must not show up in the next check
    return 0;
  }
  return count;
}

Context::Context(const DeviceOptions& options)
    : ordinal_(options.ordinal), deterministic_(options.deterministic) {
  const int count = device_count();
  check(ordinal_ >= 0 && ordinal_ < count, "CUDA device {}: must be 0 … {} ({} usable)", ordinal_, count - 1,
        count);
  cudaDeviceProp properties;
  SPINFER_CUDA_CHECK(cudaGetDeviceProperties(&properties, ordinal_));
  facts_ = facts_of(properties);
  check(facts_.compute_capability >= 80,
        "CUDA device {} ({}) has compute capability {}.{}: 8.0 or newer is needed", ordinal_, properties.name,
        properties.major, properties.minor);
  // What a kernel can do (clusters, dependent launches) is decided where it is compiled. sm_90a code is for
  // this device alone, or not there at all.
  SPINFER_CUDA_CHECK(cudaSetDevice(ordinal_));
  if (!(kBuiltForHopper && facts_.compute_capability == 90))
    facts_.compute_capability = std::min(facts_.compute_capability, compiled_for());
  info_.name = properties.name;
  info_.total_bytes = int64_t(properties.totalGlobalMem);

  SPINFER_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  SPINFER_CUDA_CHECK(cublasCreate(&blas_));
  SPINFER_CUDA_CHECK(cublasSetStream(blas_, stream_));
  // As dense_linear.cpp asks of cuBLASLt: parts of a split sum are added in fp32.
  SPINFER_CUDA_CHECK(cublasSetMathMode(
      blas_, cublasMath_t(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
  SPINFER_CUDA_CHECK(cublasLtCreate(&lt_));
  blas_workspace_ = allocate(kBlasWorkspaceBytes);
  SPINFER_CUDA_CHECK(cublasSetWorkspace(blas_, blas_workspace_, kBlasWorkspaceBytes));
  flags_ = static_cast<int*>(allocate(kFlags * sizeof(int)));
  SPINFER_CUDA_CHECK(cudaMemset(flags_, 0, kFlags * sizeof(int)));
  dense_plans_ = std::make_unique<DensePlans>();
  op_state_ = std::make_unique<OpState>();
}

/// A destructor cannot throw, and an error here is one that an earlier call has reported: statuses are not
/// looked at.
Context::~Context() {
  cudaSetDevice(ordinal_);
  cudaStreamSynchronize(stream_);
  weight_upload_.reset();
  op_state_.reset();
  dense_plans_.reset();
  cublasLtDestroy(lt_);
  cublasDestroy(blas_);
  release(workspace_);
  release(partial_sums_);
  release(flags_);
  release(blas_workspace_);
  cudaStreamDestroy(stream_);
}

DeviceInfo Context::info() const {
  activate();
  DeviceInfo info = info_;
  size_t free = 0, total = 0;
  SPINFER_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  info.free_bytes = int64_t(free);
  info.scratch_bytes = int64_t(workspace_bytes_ + kBlasWorkspaceBytes + kFlags * sizeof(int) +
                               (partial_sums_ ? partial_sum_bytes() : 0));
  info.peers = peers_of(ordinal_, device_count());
  return info;
}

void Context::activate() const {
  SPINFER_CUDA_CHECK(cudaSetDevice(ordinal_));
}

bool Context::capturing() const {
  cudaStreamCaptureStatus status;
  SPINFER_CUDA_CHECK(cudaStreamIsCapturing(stream_, &status));
  return status != cudaStreamCaptureStatusNone;
}

void* Context::allocate(size_t bytes) const {
  activate();
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    fail("{} (device {}): out of memory: {} bytes asked for, {} of {} free", info_.name, ordinal_, bytes,
         free, total);
  }
  SPINFER_CUDA_CHECK(status);
  return memory;
}

void Context::release(void* memory) const noexcept {
  cudaSetDevice(ordinal_);
  cudaFree(memory);
}

std::shared_ptr<void> Context::allocate_shared(size_t bytes) const {
  const int ordinal = ordinal_;
  return {allocate(bytes), [ordinal](void* memory) {
            cudaSetDevice(ordinal);
            cudaFree(memory);
          }};
}

void Context::upload(void* device, const void* host, size_t bytes) {
  if (bytes <= OpState::kMostStaged) return op_state_->upload(*this, device, host, bytes);
  if (!weight_upload_) weight_upload_ = std::make_unique<WeightUpload>();
  weight_upload_->copy(*this, device, host, bytes);
}

void* Context::partial_sums() {
  if (partial_sums_) return partial_sums_;
  check(!capturing(), "device {}: the first sparse weight is prepared before graphs are captured", ordinal_);
  const size_t bytes = partial_sum_bytes();
  void* memory = allocate(bytes);
  const cudaError_t status = cudaMemsetAsync(memory, 0xff, bytes, stream_);
  if (status != cudaSuccess) release(memory);
  SPINFER_CUDA_CHECK(status);
  return partial_sums_ = memory;
}

void* Context::workspace(size_t bytes) {
  if (bytes <= workspace_bytes_) return workspace_;
  check(!capturing(), "device {}: an op wants {} bytes of workspace during graph capture, {} are reserved",
        ordinal_, bytes, workspace_bytes_);
  SPINFER_CUDA_CHECK(cudaStreamSynchronize(stream_));
  ++memory_version_;  // also where there is no memory for the new one
  release(workspace_);
  workspace_ = nullptr;
  workspace_bytes_ = 0;
  workspace_ = allocate(bytes);
  workspace_bytes_ = bytes;
  return workspace_;
}

}  // namespace spinfer::cuda
