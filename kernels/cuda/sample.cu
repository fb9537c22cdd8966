// Sampling on the device: the order of steps, ties and the draw are specified at SampleRow (kernels/ops.h).
// One cluster (vocabulary.cuh) a row, one id out.
//
// Tokens have a total order (logit, then lower id), kept in one integer, their rank; top-k and top-p keep the
// tokens down to some rank, the cut. A cut is found exactly: a histogram over the distance from the maximum
// says in which bin it lies, the ranks of that bin are sorted in shared memory. Every block of the cluster
// adds up all blocks' histograms and sorts all their lists itself, which needs fewer meetings than to share a
// result. Weights are summed as integers of 2⁻⁴¹, so no sum depends on the order of threads; against the
// CPU's double sums that moves a boundary by less than exp's own rounding.
//
// Measured on an H200 (scripts/results/h200_ops.json), µs for 1, 16 and 32 rows: greedy 3.2, 4.4, 4.8 of
// 32,000 logits and 4.5, 7.0, 10.2 of 128,256; top-k with top-p 24, 31, 30 and 35, 49, 79, most of it
// meetings.
#include <cmath>
#include <cub/block/block_scan.cuh>

#include "kernels/check.h"
#include "kernels/cuda/fault.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/op_state.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vocabulary.cuh"

namespace spinfer::cuda {
namespace {

constexpr int kBins = kRowThreads;
constexpr float kBinsPerNat = 16;  // 512 bins reach e⁻³² below the maximum; what lies lower shares the last
constexpr int kListedEach = 4;     // by a thread
constexpr int kListed = kListedEach * kRowThreads;
constexpr int kLimbs = 3, kLimbBits = 14;
constexpr float kOne = 0x1p41f;  // a weight of 1, in kLimbs limbs
// Limbs of a whole vocabulary add up to less than 2³².
static_assert(uint64_t{kMaxRowVocab} << kLimbBits <= uint64_t{1} << 32);

using BlockScan = cub::BlockScan<uint64_t, kRowThreads, cub::BLOCK_SCAN_WARP_SCANS>;

struct SampleShared {
  uint32_t bins[kLimbs][kBins];  ///< of this block's part
  uint64_t own[kListed];         ///< ranks in the bin looked for, of this block's part
  uint32_t count;                ///< of them
  uint64_t listed[kListed];      ///< all blocks'
  BlockScan::TempStorage scan;
  uint64_t exchange[2];
  int bin;
  uint64_t above;
  uint64_t cut;
  uint64_t below;
  int segment;
};

/// The logits of one row with what turns them into weights.
struct Row {
  RowPart part;
  float max;
  float temperature;
  uint64_t best;  ///< rank of the most probable token

  __device__ float weight(float logit) const { return expf((logit - max) / temperature); }
  __device__ static uint64_t fixed(float weight) { return __float2ull_rz(weight * kOne); }
  __device__ int bin(float logit) const { return min(kBins - 1, int((max - logit) * kBinsPerNat)); }
};

static_assert(sizeof(SampleShared) + 1024 <= kRowShared);  // and what its reductions have

/// Sorts s.listed[0, count) by falling rank: a bitonic network over the next power of two, filled up with
/// zeros.
__device__ void sort_listed(SampleShared& s, int count) {
  int size = 2;
  while (size < count) size *= 2;
  for (int i = count + int(threadIdx.x); i < size; i += kRowThreads) s.listed[i] = 0;
  for (int width = 2; width <= size; width *= 2) {
    for (int step = width / 2; step > 0; step /= 2) {
      __syncthreads();  // the step before has written what this one reads
      for (int pair = int(threadIdx.x); pair < size / 2; pair += kRowThreads) {
        const int i = pair / step * 2 * step + pair % step;
        const uint64_t a = s.listed[i], b = s.listed[i + step];
        const bool falling = (i & width) == 0;
        if ((a < b) == falling) {
          s.listed[i] = b;
          s.listed[i + step] = a;
        }
      }
    }
  }
  __syncthreads();
}

/// The cut where one bin holds more tokens than the list: bisection over ranks, one pass each.
template <class Measure>
__device__ uint64_t bisect_cut(RowTeam& team, const Row& row, uint64_t need, const Measure& measure) {
  uint64_t low = 0, high = row.best;  // the sum down to `low` reaches need; the cut is in [low, high]
  while (low < high) {
    const uint64_t middle = high - (high - low) / 2;
    uint64_t sum = 0;
    row.part.for_each([&](int i, float x) {
      if (rank_of(x, i) >= middle) sum += measure(i, x);
    });
    if (team.reduce(sum, Sum()) >= need) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

/// Adds the measures of this block's part to its bins.
template <class Measure>
__device__ void fill_bins(SampleShared& s, const Row& row, const Measure& measure) {
  for (int limb = 0; limb < kLimbs; ++limb) s.bins[limb][threadIdx.x] = 0;
  if (threadIdx.x == 0) s.count = 0;
  __syncthreads();
  row.part.for_each([&](int i, float x) {
    const uint64_t m = measure(i, x);
    const int bin = row.bin(x);
#pragma unroll
    for (int limb = 0; limb < kLimbs; ++limb) {
      const uint32_t part = uint32_t(m >> (limb * kLimbBits)) & ((1u << kLimbBits) - 1);
      if (part) atomicAdd(&s.bins[limb][bin], part);
    }
  });
}

/// Gathers all blocks' lists; returns how many ranks they hold, of which at most kListed were gathered.
__device__ int gather_lists(SampleShared& s, const RowTeam& team) {
  int count = 0;
  for (int rank = 0; rank < team.blocks(); ++rank) {
    const auto* other = ptx::in_block(&s, rank);
    const int own = int(other->count);
    for (int i = int(threadIdx.x); i < own && count + i < kListed; i += kRowThreads)
      s.listed[count + i] = other->own[i];
    count += own;
  }
  return count;
}

/// The rank of the last token of the shortest prefix, in falling rank, whose measures sum to need_of(total).
template <class Measure, class NeedOf>
__device__ uint64_t find_cut(SampleShared& s, RowTeam& team, const Row& row, const Measure& measure,
                             const NeedOf& need_of) {
  fill_bins(s, row, measure);
  team.meet();  // all bins are filled
  uint64_t mine = 0, through, total;
  for (int rank = 0; rank < team.blocks(); ++rank) {
    const auto* other = ptx::in_block(&s, rank);
    for (int limb = 0; limb < kLimbs; ++limb)
      mine += uint64_t{other->bins[limb][threadIdx.x]} << (limb * kLimbBits);
  }
  BlockScan(s.scan).InclusiveSum(mine, through, total);
  const uint64_t need = need_of(total);
  if (through >= need && through - mine < need) {  // one thread: need is in 1…total
    s.bin = int(threadIdx.x);
    s.above = through - mine;
  }
  __syncthreads();
  const int bin = s.bin;
  row.part.for_each([&](int i, float x) {
    if (row.bin(x) != bin || measure(i, x) == 0) return;
    const uint32_t place = atomicAdd(&s.count, 1u);
    if (place < kListed) s.own[place] = rank_of(x, i);
  });
  team.meet();  // all lists are complete
  const int count = gather_lists(s, team);
  team.meet();  // and may be made anew
  if (count > kListed) return bisect_cut(team, row, need, measure);
  sort_listed(s, count);
  uint64_t measures[kListedEach] = {}, sums[kListedEach];
  for (int j = 0; j < kListedEach; ++j) {
    const int i = kListedEach * int(threadIdx.x) + j;
    if (i < count) measures[j] = measure(id_of_rank(s.listed[i]), logit_of_rank(s.listed[i]));
  }
  BlockScan(s.scan).InclusiveSum(measures, sums);
  for (int j = 0; j < kListedEach; ++j) {
    const int i = kListedEach * int(threadIdx.x) + j;
    const uint64_t sum = s.above + sums[j];
    if (i < count && sum >= need && sum - measures[j] < need) s.cut = s.listed[i];
  }
  __syncthreads();
  return s.cut;
}

/// The first kept token of the part, by id, whose running sum of weights exceeds `target`; on one thread, −1
/// on the others. The part's sum exceeds it.
template <class Kept>
__device__ int draw_in_part(SampleShared& s, const RowPart& part, uint64_t target, const Kept& kept) {
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  int begin = 0, end = part.count;
  // The range is cut into one segment a warp; the segment with the target is the next range.
  while (end - begin > 32) {
    const int segment = ((end - begin + kRowWarps - 1) / kRowWarps + 31) / 32 * 32;
    const int from = min(end, begin + warp * segment), to = min(end, from + segment);
    uint64_t sum = 0;
    for (int i = from + lane; i < to; i += 32) sum += kept(part.first + i, part.values[i]);
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    uint64_t before = 0, total = 0;
    BlockScan(s.scan).ExclusiveSum(lane == 0 ? sum : 0, before, total);
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
  if (warp != 0) return -1;
  const int i = begin + lane;
  const uint64_t mine = i < end ? kept(part.first + i, part.values[i]) : 0;
  uint64_t through = mine;
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint64_t other = __shfl_up_sync(~0u, through, offset);
    if (lane >= offset) through += other;
  }
  return through > target && through - mine <= target ? part.first + i : -1;
}

/// The same over the whole row, for u · the sum of all kept weights.
template <class Kept>
__device__ int draw(SampleShared& s, RowTeam& team, const RowPart& part, float u, const Kept& kept) {
  uint64_t mine = 0;
  part.for_each([&](int i, float x) { mine += kept(i, x); });
  mine = block_reduce(mine, Sum());
  team.share(mine);
  uint64_t total = 0, before = 0;
  for (int rank = 0; rank < team.blocks(); ++rank) {
    if (rank == team.rank()) before = total;
    total += team.of<uint64_t>(rank);
  }
  const uint64_t bits = uint64_t(u * 0x1p24f);  // u has 24 bits: floor(u · total) exactly
  const uint64_t target = __umul64hi(total, bits) << 40 | (total * bits) >> 24;
  if (target < before || target >= before + mine) return -1;
  return draw_in_part(s, part, target - before, kept);
}

/// Whether the row's logits are not sampled as they are.
__device__ bool has_biases(const SampleArgs& a, const SampleRow& config) {
  return a.biases && config.bias_begin != config.bias_end;
}
__device__ bool has_penalty(const SampleArgs& a, const SampleRow& config) {
  return a.seen && config.repeat_penalty != 1.0f && config.seen_begin != config.seen_end;
}

/// Applies biases and the repetition penalty to the part's copy.
__device__ void adjust(const SampleArgs& a, const SampleRow& config, const RowPart& part, float* copy,
                       Fault* fault) {
  __syncthreads();  // the copy is whole before any token is changed
  if (has_biases(a, config)) {
    for (int i = config.bias_begin + int(threadIdx.x); i < config.bias_end; i += kRowThreads) {
      const int id = a.biases[i].id, place = id - part.first;
      if (id < 0 || id >= a.vocab) {
        raise_fault(fault, FaultKind::seen_token, int(blockIdx.y), id, a.vocab);
      } else if (place >= 0 && place < part.count) {
        copy[place] += a.biases[i].bias;
      }
    }
    __syncthreads();  // the penalty looks at biased logits
  }
  if (!has_penalty(a, config)) return;
  for (int i = config.seen_begin + int(threadIdx.x); i < config.seen_end; i += kRowThreads) {
    const int id = a.seen[i], place = id - part.first;
    if (id < 0 || id >= a.vocab) {
      raise_fault(fault, FaultKind::seen_token, int(blockIdx.y), id, a.vocab);
    } else if (place >= 0 && place < part.count) {
      copy[place] =
          copy[place] > 0 ? copy[place] / config.repeat_penalty : copy[place] * config.repeat_penalty;
    }
  }
  __syncthreads();
}

/// The row's token, on one thread of the team; −1 on the others.
__device__ int sample_row(SampleShared& s, RowTeam& team, const SampleRow& config, const Row& row,
                          int vocab) {
  uint64_t cut = 0;
  if (config.top_k > 0 && config.top_k < vocab) {
    cut = find_cut(
        s, team, row, [](int, float) { return uint64_t{1}; },
        [&](uint64_t) { return uint64_t(config.top_k); });
  }
  if (config.top_p < 1) {
    const auto kept = [&](int i, float x) {
      return rank_of(x, i) >= cut ? Row::fixed(row.weight(x)) : uint64_t{0};
    };
    const uint64_t shortest = find_cut(s, team, row, kept, [&](uint64_t total) {
      const double need = ceil(double(config.top_p) * double(total));
      return need < 1 ? uint64_t{1} : min(total, uint64_t(need));
    });
    cut = max(cut, shortest);
  }
  return draw(s, team, row.part, sample_uniform(config.seed, config.step), [&](int i, float x) {
    if (rank_of(x, i) < cut) return uint64_t{0};
    const float weight = row.weight(x);
    return weight < config.min_p ? uint64_t{0} : Row::fixed(weight);
  });
}

/// `copies`: [n][vocab] for changed rows where a row has one block and a row may have changes, else null.
__global__ void __launch_bounds__(kRowThreads) sample_kernel(SampleArgs a, float* copies, Fault* fault) {
  extern __shared__ __align__(16) float part_copy[];
  __shared__ SampleShared s;
  let_successor_start();
  wait_for_predecessor();
  RowTeam team(s.exchange);
  const int64_t index = blockIdx.y;
  const SampleRow config = a.rows[index];
  RowPart part = part_of(a.logits + index * a.vocab, a.vocab, team);
  const bool changed = has_biases(a, config) || has_penalty(a, config);
  float* copy = nullptr;
  if (team.blocks() > 1) {
    if (changed || config.temperature != 0) copy = part_copy;
  } else if (changed) {
    copy = copies + index * a.vocab;
  }
  uint64_t best = read_part(part, copy);
  if (copy) {
    part.values = copy;
    if (changed) {
      adjust(a, config, part, copy, fault);
      best = read_part(part, nullptr);
    }
  }
  best = team.reduce(best, Largest());  // its barriers make the copy visible to the block
  int id = -1;
  bool found = team.leads();
  if (!usable(best)) {
    id = kNoToken;
  } else if (config.temperature == 0) {
    id = id_of_rank(best);
  } else {
    id = sample_row(s, team, config, {part, logit_of_rank(best), config.temperature, best}, a.vocab);
    found = id >= 0;
  }
  if (found) a.ids[index] = id;
  team.meet();  // nobody leaves while its shared memory is read
}

}  // namespace

void sample(DeviceContext& opaque, const SampleArgs& a) {
  if (a.n == 0) return;
  check(a.vocab >= 1 && a.vocab <= kMaxRowVocab, "sample: a vocabulary of {}: must be 1…{}", a.vocab,
        kMaxRowVocab);
  Context& context = context_of(opaque);
  context.activate();
  const LaunchShape shape = row_launch(context.facts(), a.n, a.vocab);
  SPINFER_CUDA_CHECK(cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          int(shape.shared_bytes)));
  float* copies = nullptr;
  if ((a.seen || a.biases) && shape.cluster == 1)
    copies = static_cast<float*>(context.workspace(size_t(a.n) * size_t(a.vocab) * sizeof(float)));
  launch(context, "sample", sample_kernel, shape, a, copies, context.op_state().fault());
}

}  // namespace spinfer::cuda
