// What the ops keep in a context beside the stream: pinned memory for small uploads, marks in the queue, the
// fault record, the rank's place in its group.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/backend.h"
#include "kernels/cuda/fault.h"

namespace spinfer::cuda {

class Context;
class Group;

class OpState {
 public:
  OpState();
  ~OpState();
  OpState(const OpState&) = delete;
  OpState& operator=(const OpState&) = delete;

  Fault* fault() const { return fault_; }

  /// Queues a copy to the device; `host` may be reused on return. Waits only where the staging memory is full
  /// of copies that have not run.
  void upload(Context& context, void* device, const void* host, size_t bytes);
  /// See Backend::mark, Backend::wait and Backend::between.
  uint64_t mark(Context& context);
  void wait(uint64_t mark);
  double between(uint64_t mark, uint64_t later) const;
  /// Waits for all queued work. Throws `Error` where the device failed, a kernel reported a fault or the
  /// group was aborted.
  void drain(Context& context);

  std::shared_ptr<Group> group;  ///< null: a group of its own
  int rank = 0;                  ///< in `group`

  static constexpr size_t kMostStaged = size_t{1} << 20;

 private:
  /// Staging memory is filled part after part; an event follows a part's last copy.
  static constexpr size_t kParts = 4;
  static constexpr size_t kPartBytes = kMostStaged;

  char* stage(Context& context, size_t bytes);
  void throw_if_fault();
  cudaEvent_t kept(uint64_t mark) const;

  Fault* fault_ = nullptr;
  char* staging_ = nullptr;  ///< [kParts][kPartBytes], pinned
  size_t part_ = 0;
  size_t staged_ = 0;  ///< bytes of the part that copies use
  std::array<cudaEvent_t, kParts> part_done_{};
  std::array<cudaEvent_t, kMarks> marks_{};
  uint64_t marked_ = 0;
};

}  // namespace spinfer::cuda
