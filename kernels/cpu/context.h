// The CPU's DeviceContext: what every CPU op gets. One per rank.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#include "kernels/backend.h"
#include "kernels/thread_pool.h"

namespace spinfer {

namespace cpu {

class Group;

/// Temporary memory of one op at a time: grows to the largest request and stays. 64-byte aligned.
class Scratch {
 public:
  /// `count` elements, not initialised; valid until the next call.
  template <class T>
  T* get(size_t count) {
    const size_t bytes = (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    if (bytes > bytes_) {
      memory_.reset();  // first, so that the old and the new buffer are never held together
      bytes_ = 0;
      memory_.reset(std::aligned_alloc(kAlignment, bytes));
      if (!memory_) throw std::bad_alloc();
      bytes_ = bytes;
    }
    return static_cast<T*>(memory_.get());
  }

 private:
  static constexpr size_t kAlignment = 64;
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory_;
  size_t bytes_ = 0;
};

}  // namespace cpu

struct DeviceContext {
  explicit DeviceContext(const DeviceOptions& device_options)
      : options(device_options), pool(device_options.threads) {}

  DeviceOptions options;
  ThreadPool pool;
  cpu::Scratch scratch;               ///< used by the op that runs; never across ops
  std::shared_ptr<cpu::Group> group;  ///< null: a group of its own
  int rank = 0;                       ///< in `group`
  uint32_t left_out = 0;              ///< bits of OpKind, see Backend::leave_out
};

}  // namespace spinfer
