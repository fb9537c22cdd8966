// Large copies from pageable host memory, such as mapped files, to the device: threads copy pieces into
// pinned staging memory while earlier pieces are on their way. A plain copy from mapped memory does both one
// after the other in one thread.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>

#include "kernels/thread_pool.h"

namespace spinfer::cuda {

class Context;

class WeightUpload {
 public:
  WeightUpload();
  ~WeightUpload();
  WeightUpload(const WeightUpload&) = delete;
  WeightUpload& operator=(const WeightUpload&) = delete;

  /// Queues the copy on the context's stream; `host` may be reused on return.
  void copy(Context& context, void* device, const void* host, size_t bytes);

 private:
  static constexpr size_t kPieces = 4;  ///< under way at once
  static constexpr size_t kPieceBytes = size_t{16} << 20;
  static constexpr size_t kStripBytes = size_t{1} << 20;  ///< what a thread copies at a time
  static constexpr int kMostThreads = 8;

  ThreadPool pool_;
  char* staging_ = nullptr;  ///< [kPieces][kPieceBytes], pinned
  std::array<cudaEvent_t, kPieces> arrived_{};
  size_t next_ = 0;
};

}  // namespace spinfer::cuda
