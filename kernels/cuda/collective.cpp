#include "kernels/cuda/collective.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <numeric>
#include <thread>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/op_state.h"
#include "kernels/cuda/ops.h"

namespace spinfer::cuda {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kSetupLimit = std::chrono::seconds(60);
constexpr auto kPoll = std::chrono::microseconds(20);
/// Below this every rank sums the whole tensor: the second exchange would cost more than the bytes it saves.
constexpr int64_t kSmallBytes = 256 << 10;

/// Non-blocking communicators take a call in and work on it later.
bool accepted(ncclResult_t status) {
  return status == ncclSuccess || status == ncclInProgress;
}

/// `part(rank)` for all ranks as one NCCL group, so that sends and receives go side by side.
template <class Part>
ncclResult_t exchange(const NcclLibrary& nccl, int world, Part part) {
  ncclResult_t status = nccl.group_start();
  for (int rank = 0; rank < world && accepted(status); ++rank) status = part(rank);
  const ncclResult_t end = nccl.group_end();
  return accepted(status) ? end : status;
}

}  // namespace

Group::Group(const std::vector<int>& ordinals) : ranks_(ordinals.size()) {
  ncclUniqueId id;
  const auto checked = [&](ncclResult_t status, const char* call) {
    check(accepted(status), "{} for {} ranks: {}", call, world(), nccl_.get_error_string(status));
  };
  checked(nccl_.get_unique_id(&id), "ncclGetUniqueId");
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  try {
    checked(nccl_.group_start(), "ncclGroupStart");
    for (int rank = 0; rank < world(); ++rank) {
      Rank& r = ranks_[size_t(rank)];
      r.ordinal = ordinals[size_t(rank)];
      SPINFER_CUDA_CHECK(cudaSetDevice(r.ordinal));
      checked(nccl_.comm_init_rank_config(&r.comm, world(), id, rank, &config), "ncclCommInitRankConfig");
    }
    checked(nccl_.group_end(), "ncclGroupEnd");
    const auto start = Clock::now();
    for (Rank& rank : ranks_) {
      ncclResult_t status = ncclInProgress;
      while (status == ncclInProgress) {
        checked(nccl_.comm_get_async_error(rank.comm, &status), "ncclCommGetAsyncError");
        checked(status, "NCCL set-up");
        check(Clock::now() - start < kSetupLimit, "NCCL did not connect {} GPUs within {} s", world(),
              kSetupLimit.count());
        if (status == ncclInProgress) std::this_thread::sleep_for(kPoll);
      }
    }
    if (PeerGroup::reachable(ordinals)) peers_ = std::make_unique<const PeerGroup>(ordinals);
  } catch (...) {
    for (Rank& rank : ranks_) destroy(rank);
    throw;
  }
}

Group::~Group() {
  for (Rank& rank : ranks_) destroy(rank);
}

/// Abort rather than finalise: finalising waits for all ranks, which close one after the other.
void Group::destroy(Rank& rank) noexcept {
  const std::lock_guard lock(rank.mutex);
  if (!rank.comm) return;
  // Nobody is left to tell of an error, and one would not be news: this runs when a rank has failed, or at
  // the end.
  cudaSetDevice(rank.ordinal);
  nccl_.comm_abort(rank.comm);
  rank.comm = nullptr;
}

void Group::leave(int rank) noexcept {
  destroy(ranks_[size_t(rank)]);
}

void Group::check_alive() const {
  if (!aborted_) return;
  const std::lock_guard lock(state_mutex_);
  fail("a rank of {} stopped: {}", world(), cause_);
}

/// Waits until NCCL has taken in what was asked. The caller holds the rank's mutex.
void Group::settle(Rank& rank, ncclResult_t status) {
  while (status == ncclInProgress) {
    check_alive();
    const ncclResult_t asked = nccl_.comm_get_async_error(rank.comm, &status);
    if (asked != ncclSuccess) status = asked;
    if (status == ncclInProgress) std::this_thread::yield();
  }
  if (status == ncclSuccess) return;
  check_alive();
  fail("NCCL on device {}: {} ({})", rank.ordinal, nccl_.get_error_string(status),
       nccl_.get_last_error(rank.comm));
}

void Group::enqueue(int rank, const std::function<ncclResult_t(const NcclLibrary&, ncclComm_t)>& enqueue) {
  Rank& mine = ranks_[size_t(rank)];
  const std::lock_guard lock(mine.mutex);
  check_alive();
  check(mine.comm, "rank {} of {} has left its group", rank, world());
  settle(mine, enqueue(nccl_, mine.comm));
}

void Group::drain(int rank, cudaStream_t stream) {
  poll(ranks_[size_t(rank)], [stream] { return cudaStreamQuery(stream); });
}

void Group::wait(int rank, cudaEvent_t event) {
  poll(ranks_[size_t(rank)], [event] { return cudaEventQuery(event); });
}

void Group::poll(Rank& mine, const std::function<cudaError_t()>& query) {
  for (int64_t polls = 0;; ++polls) {
    const cudaError_t status = query();
    if (status == cudaSuccess) break;
    if (status != cudaErrorNotReady) {
      check_alive();
      SPINFER_CUDA_CHECK(status);
    }
    check_alive();
    if (polls % 64 == 63) {
      const std::lock_guard lock(mine.mutex);
      if (mine.comm) {
        ncclResult_t error = ncclSuccess;
        nccl_.comm_get_async_error(mine.comm, &error);
        settle(mine, error);
      }
    }
    std::this_thread::yield();
  }
  check_alive();  // an aborted collective ends without having done its work
}

std::vector<int64_t> Group::exchange_columns(int rank, int64_t columns) {
  Rank& mine = ranks_[size_t(rank)];
  uint64_t version = 0;
  {
    const std::lock_guard lock(state_mutex_);
    if (mine.columns != columns) {
      mine.columns = columns;
      ++mine.columns_version;
    }
    version = mine.columns_version;
  }
  while (true) {
    check_alive();
    {
      const std::lock_guard lock(state_mutex_);
      const auto came = [&](const Rank& other) { return other.columns_version >= version; };
      if (std::all_of(ranks_.begin(), ranks_.end(), came)) {
        std::vector<int64_t> all;
        for (const Rank& other : ranks_) all.push_back(other.columns);
        return all;
      }
    }
    std::this_thread::sleep_for(kPoll);
  }
}

void Group::abort(const char* cause) noexcept {
  {
    const std::lock_guard lock(state_mutex_);
    if (aborted_) return;
    try {
      cause_ = cause;
    } catch (const std::exception&) {  // no memory for the text: the ranks stop without it
    }
    aborted_ = true;
  }
  if (peers_) peers_->abort();
  for (Rank& rank : ranks_) destroy(rank);  // kernels waiting for another rank end
}

void connect(std::span<DeviceContext* const> ranks) {
  std::vector<int> ordinals;
  for (DeviceContext* rank : ranks) {
    Context& context = context_of(*rank);
    check(!context.op_state().group, "connect: device {} is in a group already", context.ordinal());
    ordinals.push_back(context.ordinal());
  }
  if (ranks.size() < 2) return;
  const auto group = std::make_shared<Group>(ordinals);
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    OpState& state = context_of(*ranks[rank]).op_state();
    state.group = group;
    state.rank = int(rank);
    context_of(*ranks[rank]).activate();
    load_summing_norms();
  }
}

void all_reduce(DeviceContext& opaque, Half* x, int64_t count) {
  Context& context = context_of(opaque);
  OpState& state = context.op_state();
  if (!state.group || count == 0) return;
  context.activate();
  Group& group = *state.group;
  const int world = group.world(), rank = state.rank;
  const cudaStream_t stream = context.stream();
  if (group.peers() && group.peers()->can_sum(x, count)) {
    group.check_alive();
    return group.peers()->sum(context, rank, x, count);
  }
  if (world == 2) {
    return group.enqueue(rank, [&](const NcclLibrary& nccl, ncclComm_t comm) {
      return nccl.all_reduce(x, x, size_t(count), ncclHalf, ncclSum, comm, stream);
    });
  }
  const int64_t slice = (count + world - 1) / world;
  if (count * int64_t{sizeof(Half)} <= kSmallBytes) {
    auto* parts = static_cast<Half*>(context.workspace(size_t(world * count) * sizeof(Half)));
    group.enqueue(rank, [&](const NcclLibrary& nccl, ncclComm_t comm) {
      return nccl.all_gather(x, parts, size_t(count), ncclHalf, comm, stream);
    });
    sum_ranks(stream, parts, world, count, count, x);
    return;
  }
  const auto begin_of = [&](int r) { return std::min(count, r * slice); };
  const auto size_of = [&](int r) { return begin_of(r + 1) - begin_of(r); };
  // parts: what each rank has of my slice; sums: all slices, padded to one size for the all-gather.
  auto* parts = static_cast<Half*>(context.workspace(size_t(2 * world * slice) * sizeof(Half)));
  Half* sums = parts + world * slice;
  group.enqueue(rank, [&](const NcclLibrary& nccl, ncclComm_t comm) {
    return exchange(nccl, world, [&](int r) {
      const ncclResult_t sent = nccl.send(x + begin_of(r), size_t(size_of(r)), ncclHalf, r, comm, stream);
      if (!accepted(sent)) return sent;
      return nccl.recv(parts + r * slice, size_t(size_of(rank)), ncclHalf, r, comm, stream);
    });
  });
  sum_ranks(stream, parts, world, slice, size_of(rank), sums + rank * slice);
  group.enqueue(rank, [&](const NcclLibrary& nccl, ncclComm_t comm) {
    return nccl.all_gather(sums + rank * slice, sums, size_t(slice), ncclHalf, comm, stream);
  });
  SPINFER_CUDA_CHECK(
      cudaMemcpyAsync(x, sums, size_t(count) * sizeof(Half), cudaMemcpyDeviceToDevice, stream));
}

void all_gather_cols(DeviceContext& opaque, const float* shard, int n, int64_t cols, float* out,
                     int64_t total) {
  Context& context = context_of(opaque);
  OpState& state = context.op_state();
  context.activate();
  const std::vector<int64_t> columns =
      state.group ? state.group->exchange_columns(state.rank, cols) : std::vector<int64_t>{cols};
  const int64_t together = std::accumulate(columns.begin(), columns.end(), int64_t{0});
  check(together == total, "all_gather_cols: the ranks have {} columns together, {} are expected", together,
        total);
  if (n == 0) return;
  if (state.group && state.group->peers() && PeerGroup::can_gather(shard, out, n, columns)) {
    state.group->check_alive();
    return state.group->peers()->gather(context, state.rank, shard, n, columns, out);
  }
  const cudaStream_t stream = context.stream();
  const float* all = shard;
  if (state.group) {
    auto* received = static_cast<float*>(context.workspace(size_t(n) * size_t(total) * sizeof(float)));
    state.group->enqueue(state.rank, [&](const NcclLibrary& nccl, ncclComm_t comm) {
      return exchange(nccl, int(columns.size()), [&, begin = int64_t{0}](int r) mutable {
        const ncclResult_t sent = nccl.send(shard, size_t(n * cols), ncclFloat, r, comm, stream);
        if (!accepted(sent)) return sent;
        const int64_t theirs = columns[size_t(r)], first = begin;
        begin += theirs;
        return nccl.recv(received + n * first, size_t(n * theirs), ncclFloat, r, comm, stream);
      });
    });
    all = received;
  }
  for (int64_t begin = 0; const int64_t width : columns) {
    if (width > 0) {
      SPINFER_CUDA_CHECK(cudaMemcpy2DAsync(out + begin, size_t(total) * sizeof(float), all + n * begin,
                                           size_t(width) * sizeof(float), size_t(width) * sizeof(float),
                                           size_t(n), cudaMemcpyDeviceToDevice, stream));
    }
    begin += width;
  }
}

void abort_group(DeviceContext& opaque, const char* cause) noexcept {
  if (const auto& group = context_of(opaque).op_state().group) group->abort(cause);
}

}  // namespace spinfer::cuda
