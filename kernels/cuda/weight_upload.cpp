#include "kernels/cuda/weight_upload.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"

namespace spinfer::cuda {

WeightUpload::WeightUpload() : pool_(std::clamp(int(std::thread::hardware_concurrency()), 1, kMostThreads)) {
  void* memory = nullptr;
  SPINFER_CUDA_CHECK(cudaHostAlloc(&memory, kPieces * kPieceBytes, cudaHostAllocPortable));
  staging_ = static_cast<char*>(memory);
  for (cudaEvent_t& event : arrived_)
    SPINFER_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
}

WeightUpload::~WeightUpload() {
  for (const cudaEvent_t event : arrived_) {
    cudaEventSynchronize(event);  // the copy reads the staging memory
    cudaEventDestroy(event);
  }
  cudaFreeHost(staging_);
}

void WeightUpload::copy(Context& context, void* device, const void* host, size_t bytes) {
  for (size_t begin = 0; begin < bytes; begin += kPieceBytes) {
    const size_t size = std::min(kPieceBytes, bytes - begin), piece = next_++ % kPieces;
    char* staged = staging_ + piece * kPieceBytes;
    const char* source = static_cast<const char*>(host) + begin;
    SPINFER_CUDA_CHECK(cudaEventSynchronize(arrived_[piece]));  // never recorded: counts as arrived
    pool_.parallel_for(int64_t((size + kStripBytes - 1) / kStripBytes), [&](int64_t strip) {
      const size_t from = size_t(strip) * kStripBytes;
      std::memcpy(staged + from, source + from, std::min(kStripBytes, size - from));
    });
    SPINFER_CUDA_CHECK(cudaMemcpyAsync(static_cast<char*>(device) + begin, staged, size,
                                       cudaMemcpyHostToDevice, context.stream()));
    SPINFER_CUDA_CHECK(cudaEventRecord(arrived_[piece], context.stream()));
  }
}

}  // namespace spinfer::cuda
