// Collectives between the contexts of one process, one thread per rank: the CPU's stand-in for NCCL.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "kernels/cpu/context.h"

namespace spinfer::cpu {

/// What the ranks of a group share. A collective is: publish the own buffer, meet, work on each other's
/// buffers, leave.
class Group {
 public:
  struct Buffer {
    void* data;
    int64_t rows;
    int64_t cols;
    friend bool operator==(const Buffer&, const Buffer&) = default;
  };

  explicit Group(int world) : buffers_(size_t(world)) {}

  int world() const { return int(buffers_.size()); }

  /// Publishes the rank's buffer and waits for all ranks to do so; then every rank may use all buffers until
  /// `leave`. Throws `Error` naming the cause if the group was aborted before all had come; then no rank uses
  /// any buffer.
  std::span<const Buffer> meet(int rank, Buffer buffer);
  /// Waits until all ranks are done with the buffers. Not abortable: nobody waits for anything between meet
  /// and leave, and a rank that left early could free memory another one still reads.
  void leave();
  void abort(const char* cause) noexcept;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Buffer> buffers_;
  int arrived_ = 0;
  uint64_t met_ = 0;  ///< completed meetings
  int left_ = 0;
  uint64_t finished_ = 0;  ///< completed leavings
  bool aborted_ = false;
  std::string cause_;
};

void connect(std::span<DeviceContext* const> ranks);
void all_reduce(DeviceContext& context, Half* x, int64_t count);
void all_gather_cols(DeviceContext& context, const float* shard, int n, int64_t cols, float* out,
                     int64_t total);
void abort_group(DeviceContext& context, const char* cause) noexcept;

}  // namespace spinfer::cpu
