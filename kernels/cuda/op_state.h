// What the ops keep in a context beside the stream: pinned memory for small uploads, the fault record, the
// rank's place in its group.
#pragma once

#include <cstddef>
#include <memory>

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

  /// Queues a copy to the device; `host` may be reused on return.
  void upload(Context& context, void* device, const void* host, size_t bytes);
  /// Waits for all queued work. Throws `Error` where the device failed, a kernel reported a fault or the
  /// group was aborted.
  void drain(Context& context);

  std::shared_ptr<Group> group;  ///< null: a group of its own
  int rank = 0;                  ///< in `group`

 private:
  static constexpr size_t kStagingBytes = size_t{4} << 20;
  Fault* fault_ = nullptr;
  char* staging_ = nullptr;
  size_t staged_ = 0;  ///< bytes of staging_ that copies under way may still read
};

}  // namespace spinfer::cuda
