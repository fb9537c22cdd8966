// Layout    each rank's memory: [2 slots][world][kSlotBytes] parts, then lines (peer_exchange.cuh), then
//           flags [world][kBlocks], then epochs [kMostPeerBlocks]. Call number e (the epoch, counted on the
//           device so that a replayed graph counts on) uses slot e % 2, or the lines e % 2.
// Grid      of an exchange by slots always kBlocks blocks; vector i of any part is written and read by block
//           i / kThreads % kBlocks of each rank, so that a block needs only the flags of its own number. By
//           lines a thread needs only its own vectors.
// Reuse     a rank in call e has finished e - 1, in which it had something of each peer's call e - 1, whose
//           call e - 2 was over then (kernels of a stream complete in order): so nobody reads slot or lines
//           e % 2 any more.
// Roofline  (world - 1) * bytes out over the link (by lines twice that), one crossing; measured in
//           scripts/results/h200_tp_all_reduce.json.
#include <algorithm>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/peer_exchange.cuh"
#include "kernels/cuda/peer_group.h"

namespace spinfer::cuda {
namespace {

constexpr int kBlocks = 64;
constexpr int kThreads = 256;
constexpr int64_t kStride = kBlocks * kThreads;
constexpr int64_t kSlotVecs = PeerGroup::kSlotBytes / int64_t{sizeof(uint4)};
constexpr int kFloatVec = sizeof(uint4) / sizeof(float);
static_assert(kBlocks <= kMostPeerBlocks && kMostLineVecs <= int64_t{kMostPeerBlocks} * kThreads);

__device__ void raise_flag(uint32_t* flag, uint32_t epoch) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(epoch) : "memory");
}
__device__ uint32_t read_flag(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

/// Writes my part to all peers and waits for theirs. The parts of this call, [world][kSlotVecs] of which mine
/// is left out, or null if the group was aborted.
__device__ const uint4* exchange(const Peers& p, const uint4* part, int64_t vecs) {
  const int block = int(blockIdx.x), thread = int(threadIdx.x);
  const uint32_t epoch = call_number(p);
  const int64_t slot = int64_t(epoch % 2) * p.world * kSlotVecs;
  for (int64_t i = block * kThreads + thread; i < vecs; i += kStride) {
    const uint4 mine = part[i];
    for (int step = 1; step < p.world; ++step) {  // each rank begins with another peer
      p.slots[(p.rank + step) % p.world][slot + p.rank * kSlotVecs + i] = mine;
    }
  }
  __threadfence_system();  // each thread's vectors are out before a flag says so
  __syncthreads();
  bool alive = true;
  if (thread < p.world && thread != p.rank) {
    raise_flag(p.flags[thread] + p.rank * kBlocks + block, epoch);
    const uint32_t* theirs = p.flags[p.rank] + thread * kBlocks + block;
    for (int spins = 1; alive && int32_t(read_flag(theirs) - epoch) < 0; ++spins) {
      if (spins % kSpinsBetweenLooks == 0) alive = *p.aborted == 0;
    }
  }
  alive = __syncthreads_and(alive);
  count_call(p, epoch);
  return alive ? p.slots[p.rank] + slot : nullptr;
}

__global__ void __launch_bounds__(kThreads) sum_kernel(const Peers p, uint4* x, int64_t vecs) {
  wait_for_predecessor();
  let_successor_start();
  const uint4* parts = exchange(p, x, vecs);
  if (!parts) return;
  for (int64_t i = blockIdx.x * kThreads + threadIdx.x; i < vecs; i += kStride) {
    float2 sum[4] = {};
    for (int rank = 0; rank < p.world; ++rank)
      add_pairs(sum, rank == p.rank ? x[i] : load_part(parts + rank * kSlotVecs + i));
    reinterpret_cast<Vec8*>(x)[i] = rounded(sum);
  }
}

/// One vector a thread, by lines.
__global__ void __launch_bounds__(kThreads) sum_lines_kernel(const Peers p, uint4* x, int64_t vecs) {
  wait_for_predecessor();
  let_successor_start();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const uint32_t epoch = call_number(p);
  if (i < vecs) {
    const uint4 mine = x[i];
    send_vector(p, i, mine, epoch);
    Vec8 sum;
    if (sum_vector(p, i, mine, epoch, sum)) reinterpret_cast<Vec8*>(x)[i] = sum;
  }
  __syncthreads();  // every thread has the call's number
  count_call(p, epoch);
}

struct Columns {
  int64_t vecs[kMaxPeers];  // a row, of each rank
};

__global__ void __launch_bounds__(kThreads)
    gather_kernel(const Peers p, const uint4* shard, int n, const Columns columns, uint4* out) {
  wait_for_predecessor();
  let_successor_start();
  const uint4* parts = exchange(p, shard, n * columns.vecs[p.rank]);
  if (!parts) return;
  int64_t total = 0;
  for (int rank = 0; rank < p.world; ++rank) total += columns.vecs[rank];
  for (int64_t rank = 0, begin = 0; rank < p.world; begin += columns.vecs[rank++]) {
    const int64_t width = columns.vecs[rank];
    for (int64_t i = blockIdx.x * kThreads + threadIdx.x; i < n * width; i += kStride) {
      out[i / width * total + begin + i % width] =
          rank == p.rank ? shard[i] : load_part(parts + rank * kSlotVecs + i);
    }
  }
}

size_t lines_offset(size_t world) {
  return 2 * world * size_t{PeerGroup::kSlotBytes};
}
size_t flags_offset(size_t world) {
  return lines_offset(world) + 2 * world * 2 * size_t{kMostLineVecs} * sizeof(uint4);
}
size_t epochs_offset(size_t world) {
  return flags_offset(world) + world * kBlocks * sizeof(uint32_t);
}

/// See load_summing_norms() in ops.h.
void load_kernels() {
  cudaFuncAttributes attributes;
  SPINFER_CUDA_CHECK(cudaFuncGetAttributes(&attributes, sum_kernel));
  SPINFER_CUDA_CHECK(cudaFuncGetAttributes(&attributes, sum_lines_kernel));
  SPINFER_CUDA_CHECK(cudaFuncGetAttributes(&attributes, gather_kernel));
}

}  // namespace

bool PeerGroup::reachable(const std::vector<int>& ordinals) {
  if (ordinals.size() > kMaxPeers) return false;
  for (const int from : ordinals) {
    for (const int to : ordinals) {
      int reaches = 1;
      if (from != to) SPINFER_CUDA_CHECK(cudaDeviceCanAccessPeer(&reaches, from, to));
      if (!reaches) return false;
    }
  }
  return true;
}

PeerGroup::PeerGroup(const std::vector<int>& ordinals) : ordinals_(ordinals) {
  const size_t world = ordinals.size();
  try {
    SPINFER_CUDA_CHECK(
        cudaHostAlloc(reinterpret_cast<void**>(&aborted_), sizeof(int), cudaHostAllocPortable));
    *aborted_ = 0;
    for (const int from : ordinals) {
      SPINFER_CUDA_CHECK(cudaSetDevice(from));
      load_kernels();
      for (const int to : ordinals) {
        if (from == to) continue;
        const cudaError_t status = cudaDeviceEnablePeerAccess(to, 0);
        if (status == cudaErrorPeerAccessAlreadyEnabled) {
          (void)cudaGetLastError();  // mapped by an earlier group: nothing to do
        } else {
          SPINFER_CUDA_CHECK(status);
        }
      }
      const size_t bytes = epochs_offset(world) + kMostPeerBlocks * sizeof(uint32_t);
      void* memory = nullptr;
      SPINFER_CUDA_CHECK(cudaMalloc(&memory, bytes));
      memory_.push_back(memory);
      SPINFER_CUDA_CHECK(cudaMemset(memory, 0, bytes));
      SPINFER_CUDA_CHECK(cudaDeviceSynchronize());
    }
  } catch (...) {
    release();
    throw;
  }
}

PeerGroup::~PeerGroup() {
  release();
}

/// Failures here would hide the error that led here, and the memory goes with the process.
void PeerGroup::release() noexcept {
  for (size_t rank = 0; rank < memory_.size(); ++rank) {
    if (cudaSetDevice(ordinals_[rank]) == cudaSuccess) (void)cudaFree(memory_[rank]);
  }
  if (aborted_) (void)cudaFreeHost(aborted_);
}

Peers PeerGroup::peers_of(int rank) const {
  Peers peers{};
  const size_t world = memory_.size();
  for (size_t r = 0; r < world; ++r) {
    auto* base = static_cast<char*>(memory_[r]);
    peers.slots[r] = reinterpret_cast<uint4*>(base);
    peers.lines[r] = reinterpret_cast<uint4*>(base + lines_offset(world));
    peers.flags[r] = reinterpret_cast<uint32_t*>(base + flags_offset(world));
  }
  peers.epochs =
      reinterpret_cast<uint32_t*>(static_cast<char*>(memory_[size_t(rank)]) + epochs_offset(world));
  peers.aborted = aborted_;
  peers.rank = rank;
  peers.world = int(world);
  return peers;
}

bool PeerGroup::can_sum(const Half* x, int64_t count) const {
  const int64_t bytes = count * int64_t{sizeof(Half)}, world = int64_t(memory_.size());
  const int64_t most = world == 2 ? kMostSumBytesOfTwo : std::min(kSlotBytes, kMostSumBytes / world);
  return bytes <= most && vectorisable(count, x);
}

bool PeerGroup::takes_lines(int64_t bytes) const {
  return bytes * int64_t(memory_.size() - 1) <= kMostLineBytes;
}

void PeerGroup::sum(Context& context, int rank, Half* x, int64_t count) const {
  if (takes_lines(count * int64_t{sizeof(Half)})) {
    const int64_t vecs = count / kVec;
    return launch(context, "sum_lines_kernel", sum_lines_kernel,
                  {unsigned((vecs + kThreads - 1) / kThreads), kThreads}, peers_of(rank),
                  reinterpret_cast<uint4*>(x), vecs);
  }
  launch(context, "sum_kernel", sum_kernel, {kBlocks, kThreads}, peers_of(rank), reinterpret_cast<uint4*>(x),
         count / kVec);
}

bool PeerGroup::can_gather(const float* shard, const float* out, int n, std::span<const int64_t> columns) {
  if ((reinterpret_cast<uintptr_t>(shard) | reinterpret_cast<uintptr_t>(out)) % sizeof(uint4) != 0)
    return false;
  return std::all_of(columns.begin(), columns.end(), [n](int64_t width) {
    return width % kFloatVec == 0 && n * width * int64_t{sizeof(float)} <= kSlotBytes;
  });
}

void PeerGroup::gather(Context& context, int rank, const float* shard, int n,
                       std::span<const int64_t> columns, float* out) const {
  Columns vecs{};
  for (size_t r = 0; r < columns.size(); ++r) vecs.vecs[r] = columns[r] / kFloatVec;
  launch(context, "gather_kernel", gather_kernel, {kBlocks, kThreads}, peers_of(rank),
         reinterpret_cast<const uint4*>(shard), n, vecs, reinterpret_cast<uint4*>(out));
}

void PeerGroup::abort() const noexcept {
  *static_cast<volatile int*>(aborted_) = 1;
}

}  // namespace spinfer::cuda
