// Layout    each rank's memory: [2 slots][world][kSlotBytes] parts, then flags [world][kBlocks], then epochs
// [kBlocks].
//           Call number e (the epoch, counted on the device so that a replayed graph counts on) uses slot e
//           % 2.
// Grid      always kBlocks blocks; vector i of any part is written and read by block i / kThreads % kBlocks
// of each
//           rank, so that a block needs only the flags of its own number.
// Reuse     a rank in call e has finished e − 1, in which each peer's block 0 said that its call e − 2 was
// over (kernels
//           of a stream complete in order): so nobody reads slot e % 2 any more.
// Roofline  (world − 1)·bytes out over the link, one crossing; measured in
// scripts/results/h200_all_reduce.json.
#include <cuda_fp16.h>

#include <algorithm>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/peer_group.h"

namespace spinfer::cuda {

/// What a kernel of one rank sees of the group.
struct Peers {
  uint4* slots[kMaxPeers];
  uint32_t* flags[kMaxPeers];
  uint32_t* epochs;  // mine
  const volatile int* aborted;
  int rank, world;
};

namespace {

constexpr int kBlocks = 64;
constexpr int kThreads = 256;
constexpr int64_t kStride = kBlocks * kThreads;
constexpr int64_t kSlotVecs = PeerGroup::kSlotBytes / int64_t{sizeof(uint4)};
constexpr int kFloatVec = sizeof(uint4) / sizeof(float);
constexpr int kSpinsBetweenLooks = 4096;  // looking at host memory takes a microsecond

__device__ void raise_flag(uint32_t* flag, uint32_t epoch) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(epoch) : "memory");
}
__device__ uint32_t read_flag(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
/// Other GPUs write there: past the L1 cache.
__device__ uint4 load_part(const uint4* from) {
  uint4 v;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

/// Writes my part to all peers and waits for theirs. The parts of this call, [world][kSlotVecs] of which mine
/// is left out, or null if the group was aborted.
__device__ const uint4* exchange(const Peers& p, const uint4* part, int64_t vecs) {
  const int block = int(blockIdx.x), thread = int(threadIdx.x);
  const uint32_t epoch = p.epochs[block] + 1;
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
  if (thread == 0) p.epochs[block] = epoch;
  return alive ? p.slots[p.rank] + slot : nullptr;
}

__global__ void __launch_bounds__(kThreads) sum_kernel(const Peers p, uint4* x, int64_t vecs) {
  wait_for_predecessor();
  let_successor_start();
  const uint4* parts = exchange(p, x, vecs);
  if (!parts) return;
  for (int64_t i = blockIdx.x * kThreads + threadIdx.x; i < vecs; i += kStride) {
    float2 sum[4] = {};
    for (int rank = 0; rank < p.world; ++rank) {
      const uint4 part = rank == p.rank ? x[i] : load_part(parts + rank * kSlotVecs + i);
      const auto& pairs = reinterpret_cast<const __half2(&)[4]>(part);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 v = __half22float2(pairs[j]);
        sum[j].x += v.x;
        sum[j].y += v.y;
      }
    }
    Vec8 out;
#pragma unroll
    for (int j = 0; j < 4; ++j) out.pairs[j] = __float22half2_rn(sum[j]);
    reinterpret_cast<Vec8*>(x)[i] = out;
  }
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

size_t flags_offset(size_t world) {
  return 2 * world * size_t{PeerGroup::kSlotBytes};
}
size_t epochs_offset(size_t world) {
  return flags_offset(world) + world * kBlocks * sizeof(uint32_t);
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
      for (const int to : ordinals) {
        if (from == to) continue;
        const cudaError_t status = cudaDeviceEnablePeerAccess(to, 0);
        if (status == cudaErrorPeerAccessAlreadyEnabled) {
          (void)cudaGetLastError();  // mapped by an earlier group: nothing to do
        } else {
          SPINFER_CUDA_CHECK(status);
        }
      }
      const size_t bytes = epochs_offset(world) + kBlocks * sizeof(uint32_t);
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

void PeerGroup::sum(Context& context, int rank, Half* x, int64_t count) const {
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
