// Sums of small tensors over the GPUs of one host, through memory the GPUs map from each other (NVLink or
// PCIe).
//
// One shot: every rank writes its part into a slot of each rank, raises a flag there, waits for the flags of
// the others and adds up what has arrived, in rank order. One crossing of the link, one kernel, no host: the
// kernel can be captured in a graph. For tensors of a decode step, where NCCL's two crossings and its
// protocol cost more than the bytes (world − 1 times the tensor leaves a GPU here, 2·(world − 1)/world times
// in a ring).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/half.h"

namespace spinfer::cuda {

class Context;

inline constexpr int kMaxPeers = 8;

/// The mapped memory of a group of ranks in one process.
class PeerGroup {
 public:
  /// The largest tensor a slot takes.
  static constexpr int64_t kSlotBytes = int64_t{1} << 20;

  /// True where each of these GPUs can map the memory of each other (the same GPU twice counts as mapped).
  static bool reachable(const std::vector<int>& ordinals);
  /// Maps and allocates 2·world slots a GPU. Throws `Error` where a call fails.
  explicit PeerGroup(const std::vector<int>& ordinals);
  ~PeerGroup();
  PeerGroup(const PeerGroup&) = delete;
  PeerGroup& operator=(const PeerGroup&) = delete;

  /// True for tensors that `sum` takes.
  static bool takes(const Half* x, int64_t count);
  /// Queues x[count] = Σ over ranks, added in rank order in fp32, rounded once. All ranks must come with the
  /// same counts in the same order. After `abort` x is unspecified.
  void sum(Context& context, int rank, Half* x, int64_t count) const;
  /// Ends kernels that wait for another rank, now and later. Any thread.
  void abort() const noexcept;

 private:
  void release() noexcept;

  std::vector<int> ordinals_;
  std::vector<void*> memory_;  // of each rank: slots, flags, epochs
  int* aborted_ = nullptr;     // pinned host memory the kernels look at while they wait
};

}  // namespace spinfer::cuda
