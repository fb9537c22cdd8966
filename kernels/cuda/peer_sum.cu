// Layout    each rank's memory: [2 slots][world][kSlotBytes] parts, then flags [world][kBlocks], then epochs
// [kBlocks].
//           Call number e (the epoch, counted on the device so that a replayed graph counts on) uses slot e
//           % 2.
// Grid      always kBlocks blocks; block b has the same elements on every rank and needs only the b-th flags.
// Reuse     a rank in call e has finished e − 1, in which each peer's block 0 said that its call e − 2 was
// over (kernels
//           of a stream complete in order): so nobody reads slot e % 2 any more.
// Roofline  (world − 1)·bytes out over the link, one crossing; measured in
// scripts/results/h200_all_reduce.json.
#include <cuda_fp16.h>

#include <algorithm>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/peer_sum.h"

namespace spinfer::cuda {
namespace {

constexpr int kBlocks = 64;
constexpr int kThreads = 256;
constexpr int64_t kSlotVecs = PeerGroup::kSlotBytes / int64_t{sizeof(Vec8)};
constexpr int kSpinsBetweenLooks = 4096;  // looking at host memory takes a microsecond

struct Peers {
  Vec8* slots[kMaxPeers];
  uint32_t* flags[kMaxPeers];
  uint32_t* epochs;  // mine
  const volatile int* aborted;
  int rank, world;
};

__device__ void raise_flag(uint32_t* flag, uint32_t epoch) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(epoch) : "memory");
}
__device__ uint32_t read_flag(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
/// Other GPUs write there: past the L1 cache.
__device__ Vec8 load_part(const Vec8* from) {
  Vec8 v;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(reinterpret_cast<uint32_t&>(v.pairs[0])), "=r"(reinterpret_cast<uint32_t&>(v.pairs[1])),
                 "=r"(reinterpret_cast<uint32_t&>(v.pairs[2])), "=r"(reinterpret_cast<uint32_t&>(v.pairs[3]))
               : "l"(from));
  return v;
}

__global__ void __launch_bounds__(kThreads) peer_sum_kernel(const Peers p, Vec8* x, int64_t vecs) {
  wait_for_predecessor();
  let_successor_start();
  const int block = int(blockIdx.x), thread = int(threadIdx.x);
  const uint32_t epoch = p.epochs[block] + 1;
  const int64_t slot = int64_t(epoch % 2) * p.world * kSlotVecs, first = block * kThreads + thread;
  for (int64_t i = first; i < vecs; i += kBlocks * kThreads) {
    const Vec8 mine = x[i];
    for (int step = 1; step < p.world; ++step) {  // each rank begins with another peer
      const int peer = (p.rank + step) % p.world;
      p.slots[peer][slot + p.rank * kSlotVecs + i] = mine;
    }
  }
  __threadfence_system();  // each thread's parts are out before thread t says so
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
  if (!alive) return;
  for (int64_t i = first; i < vecs; i += kBlocks * kThreads) {
    float2 sum[4] = {};
    for (int rank = 0; rank < p.world; ++rank) {
      const Vec8 part = rank == p.rank ? x[i] : load_part(p.slots[p.rank] + slot + rank * kSlotVecs + i);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 v = __half22float2(part.pairs[j]);
        sum[j].x += v.x;
        sum[j].y += v.y;
      }
    }
    Vec8 out;
#pragma unroll
    for (int j = 0; j < 4; ++j) out.pairs[j] = __float22half2_rn(sum[j]);
    x[i] = out;
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

bool PeerGroup::takes(const Half* x, int64_t count) {
  return count * int64_t{sizeof(Half)} <= kSlotBytes && vectorisable(count, x);
}

void PeerGroup::sum(Context& context, int rank, Half* x, int64_t count) const {
  Peers peers{};
  const size_t world = memory_.size();
  for (size_t r = 0; r < world; ++r) {
    auto* base = static_cast<char*>(memory_[r]);
    peers.slots[r] = reinterpret_cast<Vec8*>(base);
    peers.flags[r] = reinterpret_cast<uint32_t*>(base + flags_offset(world));
  }
  peers.epochs =
      reinterpret_cast<uint32_t*>(static_cast<char*>(memory_[size_t(rank)]) + epochs_offset(world));
  peers.aborted = aborted_;
  peers.rank = rank;
  peers.world = int(world);
  launch(context, "peer_sum_kernel", peer_sum_kernel, {kBlocks, kThreads}, peers, reinterpret_cast<Vec8*>(x),
         count / kVec);
}

void PeerGroup::abort() const noexcept {
  *static_cast<volatile int*>(aborted_) = 1;
}

}  // namespace spinfer::cuda
