// Collectives between the GPUs of one process, one thread a rank, over non-blocking NCCL communicators.
// Contracts: kernels/backend.h.
//
// Sums are made in rank order in fp32 and rounded once, as the contract says. The tensors of a decode step go
// through peer memory where the GPUs have it (peer_group.h), mostly within the add_norm that follows. Of two
// ranks, all others are NCCL's to add: its fp16 sum of two numbers, in whatever order, has the same bits (but
// for the sign of a zero), since fp32 holds more than twice fp16's digits. Of more ranks NCCL would round
// between additions, in an order of its own: there ranks exchange what they have and a kernel adds it up,
// small tensors whole on every rank (one exchange), of large ones slice r on rank r, and all gather the
// slices (two exchanges, the bytes of a ring).
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/nccl_library.h"
#include "kernels/cuda/peer_group.h"

namespace spinfer::cuda {

/// The communicators of a group. Each rank's thread uses its own; any thread may abort all.
class Group {
 public:
  /// Sets up communicators on these GPUs (ordinals in rank order). Throws `Error` on failure or after a
  /// minute.
  explicit Group(const std::vector<int>& ordinals);
  ~Group();
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  int world() const { return int(ranks_.size()); }
  /// Null where the GPUs cannot map each other's memory.
  const PeerGroup* peers() const { return peers_.get(); }

  /// Runs `enqueue` with the rank's communicator and waits until NCCL has queued what it asked for. Throws
  /// `Error` if the group is or gets aborted or NCCL reports an error.
  void enqueue(int rank, const std::function<ncclResult_t(const NcclLibrary&, ncclComm_t)>& enqueue);
  /// Waits for all of the stream's work, or for an event in it, watching for errors and an abort.
  void drain(int rank, cudaStream_t stream);
  void wait(int rank, cudaEvent_t event);
  /// The number of columns every rank has, known after all ranks have come with theirs. Waits for them only
  /// when the own number is another than the last time.
  std::vector<int64_t> exchange_columns(int rank, int64_t columns);
  /// Throws `Error` with the cause if the group was aborted.
  void check_alive() const;
  /// Wakes all ranks; the first cause is kept.
  void abort(const char* cause) noexcept;
  /// The rank's communicator goes; its queued work must be done.
  void leave(int rank) noexcept;

 private:
  struct Rank {
    int ordinal = 0;
    ncclComm_t comm = nullptr;
    std::mutex mutex;  ///< of comm: held while NCCL is called with it
    int64_t columns = -1;
    uint64_t columns_version = 0;  ///< how often this rank has come with new columns
  };
  void settle(Rank& rank, ncclResult_t status);
  void poll(Rank& rank, const std::function<cudaError_t()>& query);
  void destroy(Rank& rank) noexcept;

  NcclLibrary nccl_;
  std::vector<Rank> ranks_;
  std::unique_ptr<const PeerGroup> peers_;
  std::atomic<bool> aborted_ = false;
  mutable std::mutex state_mutex_;  ///< of cause_ and the ranks' columns
  std::string cause_;
};

void connect(std::span<DeviceContext* const> ranks);
void all_reduce(DeviceContext& context, Half* x, int64_t count);
void all_gather_cols(DeviceContext& context, const float* shard, int n, int64_t cols, float* out,
                     int64_t total);
void abort_group(DeviceContext& context, const char* cause) noexcept;

/// x[i] = Σ parts[r·stride + i] over `world` ranks in order, fp32, rounded once. For all_reduce and its test.
void sum_ranks(cudaStream_t stream, const Half* parts, int world, int64_t stride, int64_t count, Half* x);

}  // namespace spinfer::cuda
