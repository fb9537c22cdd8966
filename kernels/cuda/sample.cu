// Sampling on the device: the order of steps, ties and the draw are specified at SampleRow (kernels/ops.h).
// One block a row, one id out.
//
// Tokens have a total order (logit, then lower id), kept in one integer, their rank; top-k and top-p keep the
// tokens down to some rank, the cut. A cut is found exactly: a histogram over the distance from the maximum
// says in which bin it lies, the ranks of that bin are sorted in shared memory. Weights are summed as
// integers of 2⁻⁴¹, so no sum depends on the order of threads; against the CPU's double sums that moves a
// boundary by less than exp's own rounding.
// Passes over the row: 1 greedy; 2 plain; 2 more for top-k, 2 more for top-p.
//
// Measured on an H200, 16 rows: 32,000 logits 6.8 µs greedy, 36 µs with top-k and top-p; 128,256 logits 19
// and 114 µs.
#include <cmath>
#include <cub/block/block_scan.cuh>

#include "kernels/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/op_state.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vocabulary.cuh"

namespace spinfer::cuda {
namespace {

constexpr int kBins = kRowThreads;
constexpr float kBinsPerNat = 32;  // 1024 bins reach e⁻³² below the maximum; what lies lower shares the last
constexpr int kListed = 2 * kRowThreads;
constexpr int kLimbs = 3, kLimbBits = 14;
constexpr float kOne = 0x1p41f;     // a weight of 1, in kLimbs limbs
constexpr int kMaxVocab = 1 << 18;  // limbs of so many tokens add up to less than 2³²

using BlockScan = cub::BlockScan<uint64_t, kRowThreads, cub::BLOCK_SCAN_WARP_SCANS>;

struct SampleShared {
  uint32_t bins[kLimbs][kBins];
  uint64_t listed[kListed];
  BlockScan::TempStorage scan;
  uint32_t count;
  int bin;
  uint64_t above;
  uint64_t cut;
  uint64_t below;
  int segment;
  int id;
};

/// The logits of one row with what turns them into weights.
struct Row {
  const float* logits;
  int vocab;
  float max;
  float temperature;
  uint64_t best;  ///< rank of the most probable token

  __device__ float weight(float logit) const { return expf((logit - max) / temperature); }
  __device__ static uint64_t fixed(float weight) { return __float2ull_rz(weight * kOne); }
  __device__ int bin(float logit) const { return min(kBins - 1, int((max - logit) * kBinsPerNat)); }
};

struct Add {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a + b; }
};

/// Sorts s.listed[0, count) by falling rank: a bitonic network over the next power of two, filled up with
/// zeros.
__device__ void sort_listed(SampleShared& s, int count) {
  int size = 2;
  while (size < count) size *= 2;
  for (int i = count + int(threadIdx.x); i < size; i += kRowThreads) s.listed[i] = 0;
  for (int width = 2; width <= size; width *= 2) {
    for (int step = width / 2; step > 0; step /= 2) {
      __syncthreads();  // the step before has written what this one reads
      const int i = int(threadIdx.x) / step * 2 * step + int(threadIdx.x) % step;
      if (i + step >= size) continue;
      const uint64_t a = s.listed[i], b = s.listed[i + step];
      const bool falling = (i & width) == 0;
      if ((a < b) == falling) {
        s.listed[i] = b;
        s.listed[i + step] = a;
      }
    }
  }
  __syncthreads();
}

/// The cut where one bin holds more tokens than the list: bisection over ranks, one pass each.
template <class Measure>
__device__ uint64_t bisect_cut(const Row& row, uint64_t need, const Measure& measure) {
  uint64_t low = 0, high = row.best;  // the sum down to `low` reaches need; the cut is in [low, high]
  while (low < high) {
    const uint64_t middle = high - (high - low) / 2;
    uint64_t sum = 0;
    for_each(row.logits, 0, row.vocab, [&](int i, float x) {
      if (rank_of(x, i) >= middle) sum += measure(i, x);
    });
    if (block_reduce(sum, Add()) >= need) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

/// The rank of the last token of the shortest prefix, in falling rank, whose measures sum to need_of(total).
template <class Measure, class NeedOf>
__device__ uint64_t find_cut(SampleShared& s, const Row& row, const Measure& measure, const NeedOf& need_of) {
  __syncthreads();  // an earlier call's results have been read
  for (int limb = 0; limb < kLimbs; ++limb) s.bins[limb][threadIdx.x] = 0;
  if (threadIdx.x == 0) s.count = 0;
  __syncthreads();
  for_each(row.logits, 0, row.vocab, [&](int i, float x) {
    const uint64_t m = measure(i, x);
    const int bin = row.bin(x);
#pragma unroll
    for (int limb = 0; limb < kLimbs; ++limb) {
      const uint32_t part = uint32_t(m >> (limb * kLimbBits)) & ((1u << kLimbBits) - 1);
      if (part) atomicAdd(&s.bins[limb][bin], part);
    }
  });
  __syncthreads();
  uint64_t mine = 0, through, total;
  for (int limb = 0; limb < kLimbs; ++limb) mine += uint64_t{s.bins[limb][threadIdx.x]} << (limb * kLimbBits);
  BlockScan(s.scan).InclusiveSum(mine, through, total);
  const uint64_t need = need_of(total);
  if (through >= need && through - mine < need) {  // one thread: need is in 1…total
    s.bin = int(threadIdx.x);
    s.above = through - mine;
  }
  __syncthreads();
  const int bin = s.bin;
  for_each(row.logits, 0, row.vocab, [&](int i, float x) {
    if (row.bin(x) != bin || measure(i, x) == 0) return;
    const uint32_t place = atomicAdd(&s.count, 1u);
    if (place < kListed) s.listed[place] = rank_of(x, i);
  });
  __syncthreads();
  const int count = int(s.count);
  if (count > kListed) return bisect_cut(row, need, measure);
  sort_listed(s, count);
  uint64_t measures[2] = {};
  for (int j = 0; j < 2; ++j) {
    const int i = 2 * int(threadIdx.x) + j;
    if (i < count) measures[j] = measure(id_of_rank(s.listed[i]), row.logits[id_of_rank(s.listed[i])]);
  }
  uint64_t sums[2];
  BlockScan(s.scan).InclusiveSum(measures, sums);
  for (int j = 0; j < 2; ++j) {
    const int i = 2 * int(threadIdx.x) + j;
    const uint64_t sum = s.above + sums[j];
    if (i < count && sum >= need && sum - measures[j] < need) s.cut = s.listed[i];
  }
  __syncthreads();
  return s.cut;
}

/// The first kept token, by id, whose running sum of weights exceeds u · their total.
template <class Kept>
__device__ int draw(SampleShared& s, const Row& row, float u, const Kept& kept) {
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  int begin = 0, end = row.vocab;
  uint64_t target = 0;
  bool first = true;
  // The range is cut into one segment a warp; the segment with the target is the next range.
  while (end - begin > 32 || first) {
    const int segment = ((end - begin + kRowWarps - 1) / kRowWarps + 31) / 32 * 32;
    const int from = min(end, begin + warp * segment), to = min(end, from + segment);
    uint64_t sum = 0;
    for (int i = from + lane; i < to; i += 32) sum += kept(i, row.logits[i]);
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    uint64_t before = 0, total = 0;
    BlockScan(s.scan).ExclusiveSum(lane == 0 ? sum : 0, before, total);
    if (first) {  // u has 24 bits: floor(u · total) exactly
      const uint64_t bits = uint64_t(u * 0x1p24f);
      target = __umul64hi(total, bits) << 40 | (total * bits) >> 24;
      first = false;
    }
    if (lane == 0 && before <= target && before + sum > target) {
      s.segment = warp;
      s.below = before;
    }
    __syncthreads();
    begin += s.segment * segment;
    end = min(end, begin + segment);
    target -= s.below;
    __syncthreads();  // all have read the segment before it is found anew
  }
  if (warp == 0) {
    const int i = begin + lane;
    const uint64_t mine = i < end ? kept(i, row.logits[i]) : 0;
    uint64_t through = mine;
    for (int offset = 1; offset < 32; offset *= 2) {
      const uint64_t other = __shfl_up_sync(~0u, through, offset);
      if (lane >= offset) through += other;
    }
    if (through > target && through - mine <= target) s.id = i;
  }
  __syncthreads();
  return s.id;
}

/// A copy of the row with the repetition penalty applied.
__device__ const float* penalise(const SampleArgs& a, const SampleRow& config, const float* logits,
                                 float* copy, Fault* fault) {
  for_each(logits, 0, a.vocab, [&](int i, float x) { copy[i] = x; });
  __syncthreads();  // the copy is whole before any token is changed
  for (int i = config.seen_begin + int(threadIdx.x); i < config.seen_end; i += kRowThreads) {
    const int id = a.seen[i];
    if (id < 0 || id >= a.vocab) {
      raise_fault(fault, FaultKind::seen_token, int(blockIdx.x), id, a.vocab);
      continue;
    }
    copy[id] = copy[id] > 0 ? copy[id] / config.repeat_penalty : copy[id] * config.repeat_penalty;
  }
  __syncthreads();
  return copy;
}

__device__ int sample_row(SampleShared& s, const SampleRow& config, const Row& row) {
  uint64_t cut = 0;
  if (config.top_k > 0 && config.top_k < row.vocab) {
    cut = find_cut(
        s, row, [](int, float) { return uint64_t{1}; }, [&](uint64_t) { return uint64_t(config.top_k); });
  }
  if (config.top_p < 1) {
    const auto kept = [&](int i, float x) {
      return rank_of(x, i) >= cut ? Row::fixed(row.weight(x)) : uint64_t{0};
    };
    const uint64_t shortest = find_cut(s, row, kept, [&](uint64_t total) {
      const double need = ceil(double(config.top_p) * double(total));
      return need < 1 ? uint64_t{1} : min(total, uint64_t(need));
    });
    cut = max(cut, shortest);
  }
  return draw(s, row, sample_uniform(config.seed, config.step), [&](int i, float x) {
    if (rank_of(x, i) < cut) return uint64_t{0};
    const float weight = row.weight(x);
    return weight < config.min_p ? uint64_t{0} : Row::fixed(weight);
  });
}

/// `copies`: [n][vocab] where a row may have a penalty, else null.
__global__ void __launch_bounds__(kRowThreads) sample_kernel(SampleArgs a, float* copies, Fault* fault) {
  __shared__ SampleShared s;
  let_successor_start();
  wait_for_predecessor();
  const int64_t index = blockIdx.x;
  const SampleRow config = a.rows[index];
  const float* logits = a.logits + index * a.vocab;
  if (copies && config.repeat_penalty != 1.0f && config.seen_begin != config.seen_end)
    logits = penalise(a, config, logits, copies + index * a.vocab, fault);
  const uint64_t best = best_or_fault(logits, a.vocab, fault);
  int id = best ? id_of_rank(best) : 0;
  if (best && config.temperature != 0)
    id = sample_row(s, config, {logits, a.vocab, logits[id], config.temperature, best});
  if (threadIdx.x == 0) a.ids[index] = id;
}

}  // namespace

void sample(DeviceContext& opaque, const SampleArgs& a) {
  if (a.n == 0) return;
  check(a.vocab >= 1 && a.vocab <= kMaxVocab, "sample: a vocabulary of {}: must be 1…{}", a.vocab, kMaxVocab);
  Context& context = context_of(opaque);
  context.activate();
  float* copies = nullptr;
  if (a.seen) copies = static_cast<float*>(context.workspace(size_t(a.n) * size_t(a.vocab) * sizeof(float)));
  launch(context, "sample", sample_kernel, {dim3(unsigned(a.n)), dim3(kRowThreads)}, a, copies,
         context.op_state().fault());
}

}  // namespace spinfer::cuda
