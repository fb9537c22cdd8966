// Exchanges of small tensors between the GPUs of one host, through memory the GPUs map from each other
// (NVLink or PCIe).
//
// One shot: every rank writes its part into memory of each rank, waits for the parts of the others and adds
// up or lays side by side what has arrived. One crossing of the link, one kernel, no host: the kernel can be
// captured in a graph. For tensors of a decode step, where NCCL's protocol and second crossing cost more than
// the bytes (world − 1 times the tensor leaves a GPU here, 2·(world − 1)/world times in a ring).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/half.h"

namespace spinfer::cuda {

class Context;
struct Peers;  // peer_exchange.cuh

inline constexpr int kMaxPeers = 8;

/// The mapped memory of a group of ranks in one process. Every rank's thread calls the same operations with
/// the same sizes in the same order.
class PeerGroup {
 public:
  /// The largest part a slot takes.
  static constexpr int64_t kSlotBytes = int64_t{4} << 20;
  /// True where each of these GPUs can map the memory of each other (the same GPU twice counts as mapped).
  static bool reachable(const std::vector<int>& ordinals);
  /// Maps and allocates 2·world slots a GPU. Throws `Error` where a call fails.
  explicit PeerGroup(const std::vector<int>& ordinals);
  ~PeerGroup();
  PeerGroup(const PeerGroup&) = delete;
  PeerGroup& operator=(const PeerGroup&) = delete;

  /// True for tensors that `sum` takes: whole aligned vectors of 8, at most what a slot holds and no more
  /// bytes than it is the fastest for.
  bool can_sum(const Half* x, int64_t count) const;
  /// Two ranks: beyond, ncclAllReduce is faster (scripts/results/h200_tp_all_reduce.json).
  static constexpr int64_t kMostSumBytesOfTwo = int64_t{1} << 20;
  /// More ranks, all parts together: beyond, two exchanges over NCCL move fewer bytes.
  static constexpr int64_t kMostSumBytes = int64_t{8} << 20;
  /// Queues x[count] = Σ over ranks, added in rank order in fp32, rounded once. After `abort` x is
  /// unspecified.
  void sum(Context& context, int rank, Half* x, int64_t count) const;

  /// Of a part: up to this, together for all peers, an exchange by lines is the faster one.
  static constexpr int64_t kMostLineBytes = int64_t{512} << 10;
  /// True for parts (whole vectors of 8) that a kernel may exchange by lines (peer_exchange.cuh).
  bool takes_lines(int64_t bytes) const;
  /// For a kernel of this rank that exchanges by lines: one more call of the group, like `sum`.
  Peers peers_of(int rank) const;

  /// True for shards that `gather` takes: every rank's columns whole aligned vectors of 4, each shard within
  /// a slot.
  static bool can_gather(const float* shard, const float* out, int n, std::span<const int64_t> columns);
  /// Queues out[n][Σ columns] = the ranks' shards [n][columns[rank]] side by side. After `abort` out is
  /// unspecified.
  void gather(Context& context, int rank, const float* shard, int n, std::span<const int64_t> columns,
              float* out) const;

  /// Ends kernels that wait for another rank, now and later. Any thread.
  void abort() const noexcept;

 private:
  void release() noexcept;

  std::vector<int> ordinals_;
  std::vector<void*> memory_;  // of each rank: slots, flags, epochs
  int* aborted_ = nullptr;     // pinned host memory the kernels look at while they wait
};

}  // namespace spinfer::cuda
