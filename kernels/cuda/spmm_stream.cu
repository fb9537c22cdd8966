// The Hopper SpMM of the decode regime: y [n][m] = act(W·x + b) + residual, or y [n][m/2] = act(gate) · up, n
// ≤ 96, W as strip streams (sm_90a). A norm of x may be due, and one of y be prepared (DeferredNorm).
//
// Layout    kernels/format/strip_stream.h: strips of 32 rows, two tiers of 16, in chunks of up to 8 blocks of
//           64 columns; what a lane has of a tier is a stream on one of 64 tracks. X is [n][k] as it is, no
//           packing.
// Grid      One block per SM, persistent. A team is 8 strips, a unit is a chunk of all strips of a team.
//           Units are numbered team by team, chunk by chunk; a block has a run of them, the blocks that start
//           last a shorter one (spmm_split.h).
// Warps     8 multiply a strip each, one brings X, one finds what the others need at the end of their runs,
//           for n > 32 one refills the rings.
// Lanes     Lane l decodes rows l/4 and l/4 + 8 of both tiers, columns 2·(l%4) + {0, 1, 8, 9} of each TCTile:
//           the A fragment of mma.m16n8k16 and of a warp's quarter of wgmma.m64nNk16. Sums: their C fragment.
// Shared    SharedMap (spmm_shared.cuh): X stages, then for each multiplying warp a ring of four pieces (16
//           rows of values each) and two records (head and masks of a chunk).
// Pipeline  A warp's ring is refilled by bulk copies as the heads say (StripCursor::pass), its records chunk
//           by chunk: by the warp itself (OwnFeed), or as it tells the feeding warp (FeedingWarp). It enters
//           a chunk while it still multiplies the one before: only the streams' tracks and places change
//           there. Half a block's values are on their way from shared memory while the half before is
//           multiplied, its table entries while that one is assembled. X: an mbarrier ring. n ≤ 16: mma.sync
//           with ldmatrix, warps need not meet, products half a block late, X by asynchronous copies of 16
//           bytes; n > 16: wgmma, X by tensor copies, read by the tensor cores. Where a warp's run begins
//           stands in a table (RunStart). Weights stream before griddepcontrol.wait; X, residual, y, partial
//           sums and a norm's moments are touched after it. Until X is there a warp has one piece under way
//           at a time: the queues of memory are everybody's.
// Split     A team's sums are added in block order (spmm_split.h): bitwise reproducible. Neither cut nor grid
//           depends on n, so a token's result depends on the batch only where n chooses another way to
//           multiply; a deterministic context therefore chooses one for all n.
//
// Roofline  Bytes 1.02 … 1.03 × the TCA-BME formula; 2·n flops a weight are far below the tensor cores' rate.
//           At 4.4 TB/s an SM may spend 16 / 13.5 / 10.6 clocks on a TCTile at 50 / 60 / 70 %. A tile takes
//           26 instructions of decoding (nibble_decoder.cuh), 3 to 5 of X, multiplying and looping, pieces 3
//           (50 %) or 2 (70 %), chunks 2: about 35, of which 14 on the ALU pipe (7 clocks), and 11 wavefronts
//           at n = 8.
// Measured  README.md has the table, scripts/results/h200_linear_large.json and h200_linear_small.json the
//           figures: one H200, weights cold, ratio to the better of cublasGemmEx and autotuned cublasLt.
// Limits    50 %, n = 8: bytes (84 % of the floor at 12288×12288). Above: 14 to 15 clocks a tile, of which
//           shared memory has 11 to 12 wavefronts (8 of decoding, 2 of X at n = 16 and 32, 1.5 of copies) and
//           the issue slots 62 %. A third warp a scheduler raises that to 69 % and costs as much in
//           instructions: it waits for the ALU pipe and for dispatch instead. Of the loop's instructions 12 a
//           nibble are the decoder's; a quarter of its time is refills and borders of chunks. wgmma waits for
//           the slowest of four warps: an eighth of the time at n = 32. Each step of n brings X's bytes: at n
//           = 64 they are two thirds of the weights'. Power: 640 W at n = 8 and 700, the limit, at n = 32; at
//           64 and 96 the clock falls from 1.98 to 1.80 and 1.67 GHz ("power" in the steps' file), and in
//           whole models at batch 8 already ("power_of_models"). Small matrices: of a 4096×4096's 9 µs (50 %,
//           n = 8) 2.2 pass between the last block of the launch before and X, 4 multiply, some 2 are the
//           split's sums.
//
// What was tried (12288×12288, µs at 50 % / 70 %; n = 8 unless said; h200_decode_steps.json from "two tiers"
// on):
//   chunks in slots, ragged columns by cp.async, three fetch warps, 12 multiplying warps     53.7 / 48.0
//   this layout, rings refilled by their warps, 16 warps, decoder without a table            53.3 / 48.4
//   a feeding warp, a lane for each ring                                                     66.0 / 52.6
//   entering a chunk inside the one before                                                   51.2 / 47.5
//   pieces of a strip only in the loop, no divisions at the start, barriers and first
//   copies before the block meets                                                            50.3 / 47.9
//   the table again (nibble_decoder.cuh): four instructions a tile fewer                     48.8 / 45.3
//   the same at n = 16: 60.5 / 52.9 with slots, 54.3 / 51.6 without the table, with it       51.5 / 48.6
//   every warp's first piece asked for before any second one (13824×5120, 50 %)              28.5 → 27.4
//   mma.sync for n = 32 (wgmma: 62.3 / 58.7 that day)                                        69.4 / 62.3
//   a warpgroup's registers for X's warp given to the others, n = 64 (spills before)         89.4 → 78.1
//   table entries half a block ahead of their values (8 registers more; n = 8, and n = 16:
//   50.9 / 47.9 → 52.8 / 52.4)                                                      48.3 / 44.0 → 48.4 / 47.2
//   four feeding warps, a stage of all strips' rows for each block of columns, two strips a
//   warp: a loop of 37 instructions a tile, but a stage takes its feeder a microsecond       72.4 / 71.1
//   two tiers a warp, their values side by side: one ring, head and X for both               46.7 / 43.5
//   one branch a block for all that is rare, shifts before it, loads and permutes after      46.7 / 42.0
//   sums by value instead of tickets and fences, X not asked for behind the weights          44.2 / 40.7
//   the same, sixteen partial sums a round (4096×4096, 50 %)                                 10.3 → 12.4
//   owners that end with a team share its sums; masks a nibble a byte; two sets of sums in
//   turn for mma.sync (a slower GPU)                                                         45.3 / 39.1
//   sums by value and shared at n = 32, before 56.6 / 53.8                                   51.7 / 49.2
//   sums by value and shared, 4096×4096, 50 %, n = 8 and 32, before 11.2 and 16.9            10.6 and 13.1
//   wgmma for n = 16, against 46.5 / 43.8                                                    48.5 / 45.7
//   mma.sync for n = 32, against 55.8 / 53.1                                                 56.3 / 55.0
//   where a warp begins looked up once                                                       44.2 / 39.2
//   X asked for first, and for n ≤ 16 by plain copies: no difference beyond the GPUs' own
//   a piece at a time until X is there (12288×4096, 50 %, n = 8 and 32: 19.1 and 24.1 → 18.2 and 22.9;
//   4096×4096, n = 8: 10.7 → 9.4); until all are there, or two at a time, gains half of that
//   sums: all owners' in one round, addresses by shuffles, who adds what found by X's warp (4096×4096, 50 %,
//   n = 8, 16, 64: 9.3, 10.3, 16.1 → 9.1, 9.9, 14.7; 12288×12288, 70 %, n = 16: 43.0 → 42.2)
//   shares dealt so that every owner adds up some: the next launch's weights come later    10.4 → 11.3
//   products of mma.sync half a block late, n = 8 (before 44.6 / 38.1)                       44.5 / 36.6
//   the same, n = 16 (before 45.8 / 41.8)                                                    45.9 / 41.0
//   the same, n = 32, against wgmma's 50.3 / 47.6                                            53.5 / 51.1
//   X of sixteen tokens by four warps (13824×5120, 70 %)                                     22.9 → 23.4
//   n = 96 here instead of in the prefill kernel, where it takes 82.0                        73.3 / 72.8
//   n = 128, in the prefill kernel 95.4 / 92.1                                               91.8 / 84.4
//   a warp that prepares the ends of runs, X asked for right behind the wait, a third of add_up's
//   instructions, the table's address in a register (up to 25 instructions a block): within 1 %, n = 16 and
//   32 up to 2.5 % slower until the order below
//   table entries asked for before the products, n = 32: 3 % slower
//   one batch of wgmma a block instead of two: the same at n = 32, 3 % slower at 96
//   X let go after the next values are asked for, n = 32: 2 % faster
//   events read behind the values' addresses instead of first: .5 % faster at n = 32 and 96, else the same
//   ptxas at register usage levels 0 and 10, which order the loop anew: up to 1 % slower, n = 32 1 to 3 %;
//   n = 96 1 to 3 % faster
//   gate and norms in the epilogues (a step of 8 / 16 / 32 tokens, ms): LLaMA-2-7B 2.82 / 3.20 / 3.95 →
//   2.61 / 3.00 / 3.76, OPT-13B 4.46 / 5.24 / 6.40 → 4.37 / 5.15 / 6.33
//   three warps a scheduler (teams of 12 strips, 160 registers, rings of six pieces of 8 rows taken modulo 48
//   by viaddmin), n = 8 and 16: 44.6 / 38.0 and 45.9 / 42.3 → 45.4 / 39.7 and 47.3 / 44.8; teams of 384 rows
//   fit small matrices badly (4096×4096, 50 %, n = 8: 9.0 → 10.3)
//   refills without a branch: n = 32 1 % faster, else the same; barriers of pieces asked early: the same
//   the next chunk's head read a block early: 1 to 3 % slower
//   a warp that refills all rings, a lane a ring: n = 64 and 96 3 % faster, n = 32 the same, n = 8 and 16 1 %
//   slower at 50 %, n = 8 1 % faster above. Records too: 3 % faster at n = 64 and 96, n = 8 and 16 up to 3 %
//   slower: pieces wait for the warp to come round. Naps of 100 and 300 ns instead of 32: no difference
//   beyond the GPU's own
//   wgmma among the next half's instructions, in three orders, as what paid for mma.sync: 1 to 4 % slower at
//   n = 32, up to 7 % at 64 and 96 (ptxas puts warpgroup.arrive right before the first wgmma whatever comes
//   before; an eighth of the loop at n = 32 and a seventh at 96 wait there for the slowest of four warps)
//   n = 128 here with the feeding warp, in the prefill kernel 83.2 / 90.4, here 81.0 / 79.7; but 28672×8192
//   127.8 / 130.5 → 131.5 / 132.6 and 22016×4096 53.5 / 51.9 → 63.3 / 61.8
//   X value by value (the buffer held NaNs before), where a linear makes it, by X's warp: a step of 8 / 16
//   tokens of LLaMA-2-7B 2.58 / 2.90 → 2.64 / 3.11 ms: to look at 16 tokens' values once takes a microsecond
//   X of few tokens by copies of 16 bytes instead of a bulk copy a token (12288×4096, 50 %, n = 8 and 16):
//   18.3 and 19.9 → 18.1 and 19.5
//   from here on "late_blocks" in that file, 60 %. Of 132 thread blocks one of the last twelve was done last
//   in eight launches of ten, 1.8 µs after the mean: shorter runs for those. 12288×4096, n = 8 and 16: 16.6
//   and 18.6 → 16.3 and 18.4; a step of 16 tokens of LLaMA-2-7B 2.94 → 2.87 ms. (12288×4096, n = 32: 1 %
//   slower; 4096×4096, n = 8 and 16: 2 and 1 %, as its last team had 12 owners then, two rounds)
//   runs of blocks of columns, which begin inside chunks: even, but a chunk more each, and entering one
//   takes .27 µs: 18.6 → 19.0 (chunks of 7 blocks) or 18.7 (of 6), with shorter last ones 19.7
//   all pieces at once, or two, for the blocks that start last: slower by up to 5 and 1 %
//   records brought by the warp that prepares the ends, in turn, asleep at their barriers: 4096×4096 and
//   5120×5120 1 to 2 % faster, the largest at n = 8 up to 1 % slower, steps of models the same; looking
//   round every 100 ns the largest were 1.5 % slower. Chunks of 8 blocks at 60 %: within 1 %
//   sums that a block adds up itself left in shared memory: n = 64 1 to 2 % faster, n ≤ 32 up to 2.6 % slower
//   biases, gains and residuals asked for before the sums are waited for: steps up to .5 % shorter, one .4 %
//   longer
//   from here on "cuts". Twelve partial sums a round instead of ten for n ≤ 16, all of 4096×4096: n = 8 and
//   16 3 and 2 % faster (50 and 60 %). Cuts for which fewer teams end inside runs: 5120×5120 1 to 5 % faster.
//   Up to four chunks more or fewer: nowhere faster by more than 3 %
//   cuts of each team's own, so that runs are as long as they should be: against those two, 4096×4096, n = 8
//   and 16, 1 to 2 % faster, most others within 1 %, n = 32 slower, by up to 1 % and 5120×5120 by 3 %. Steps
//   of LLaMA-2-7B of 8 and 16 tokens as before all this, of 32 1 % longer. The prefill kernel with them
//   (dealt by blocks of columns) 10 % slower (22016×4096, 256 tokens) to 5 % faster
//   table entries of 32 bits (timed only): a wavefront less and an instruction more a nibble: n = 8 and 32 at
//   70 % 3 % slower, n = 16 1 % ("entries_of_32_bits"): instructions count, not wavefronts
//   the next chunk's masks and table entries asked for in the block before: 20 instructions a chunk fewer, 5 to
//   7 a block more: n = 8 and 16 at 70 % 1.2 and 2.3 % slower, at 50 % .2 and .5 % ("next_masks_early")
// Next: three warps a scheduler with a feeding warp (alone, they issue in 76 % of the loop's slots at n = 32,
// but a sixth more instructions); one for rings and one for records, which may suit few tokens too; eight
// warps that share a strip's columns, so that small matrices' sums meet in shared memory, with X for all
// columns in each block (multicast in a cluster, or L2 is the limit); entering a chunk, .27 µs of 2.9, in
// fewer instructions. Of the 231 a block of the loop at n = 16 takes, 20 are neither decoding, products nor X:
// each of those that goes is .3 % at 70 %. (An event of its own for a chunk's last block, so that the loop
// counts nothing, makes 227 of them; not run yet.)
#include <algorithm>
#include <type_traits>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/spmm_fetch.cuh"
#include "kernels/cuda/spmm_sums.cuh"

namespace spinfer::cuda::spmm {
namespace {

constexpr int kStartBarrier = 1;
/// Where the feeding warp waits for the barriers of rings and X. Not the start barrier: the others stand in
/// one place of the code there, and compute-sanitizer takes a second place for divergence.
constexpr int kFeedBarrier = 2;
constexpr int kFeedThreads = (kSpmmWarps + 2) * 32;

/// Stage and phase of X as a multiplying warp sees them. A stage is let go one tile late: its last wgmma is
/// then over.
template <int kN>
struct XStage {
  uint32_t full;  // shared address of x_full[0]; x_empty[0] is kXStages barriers on
  int stage = 0;
  uint32_t parity = 0;
  uint32_t used = 0;    // x_empty of the stage still to be let go, or 0
  bool by_all = false;  // every lane arrives, see x_readers

  __device__ void wait() const { ptx::barrier_wait(full + 8 * stage, parity); }
  __device__ void let_go(int lane) {
    __syncwarp();  // all lanes have read X
    if (used && (lane == 0 || by_all)) ptx::barrier_arrive(used);
    used = 0;
  }
  __device__ void next() {
    used = full + 8 * (kXStages + stage);
    if (++stage == kXStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

/// Where a strip's products are added up. mma.sync for eight tokens alternates between two: the next that
/// adds to the same registers is then half a block away, and nothing waits for it. More tokens have enough to
/// do in between (12288×12288, 70 %, n = 8 and 16, µs: 36.6 and 41.4 with two, 37.9 and 41.0 with one).
template <int kN>
struct Accumulators {
  static constexpr int kSets = kN == 8 ? 2 : 1;
  StripSums<kN> set[kSets];

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kSets * kN; ++i) set[i / kN][i / (kN / 2) % kStripTiers][i % (kN / 2)] = 0.0f;
  }
  __device__ StripSums<kN>& sums() {
    if constexpr (kSets == 2) {
#pragma unroll
      for (int i = 0; i < kN; ++i) set[0][i / (kN / 2)][i % (kN / 2)] += set[1][i / (kN / 2)][i % (kN / 2)];
    }
    return set[0];
  }
};

/// Keeps the compiler from computing a shared address anew wherever it is used.
__device__ inline uint32_t once(uint32_t address) {
  asm volatile("mov.b32 %0, %1;" : "=r"(address) : "r"(address));
  return address;
}

/// acc += half a block's assembled tiles (two a tier) · X's columns, by wgmma. X is read from shared memory
/// by the tensor cores.
template <int kN>
struct WarpgroupMultiplier {
  uint32_t x;  // operand address of X's next tile

  __device__ explicit WarpgroupMultiplier(int) {}
  __device__ void enter_stage(uint32_t x_stage) { x = ptx::operand_address(x_stage); }
  __device__ void load(int) {}
  __device__ void catch_up(Accumulators<kN>&, int) {}
  __device__ void multiply(Accumulators<kN>& acc, const uint32_t (&a)[kStripTiers][8], int half) const {
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int t = 0; t < kStripTiers; ++t)
        ptx::wgmma<kN>(acc.set[0][t], a[t] + 4 * i, ptx::swizzled_operand(x + 4 * half + 2 * i));
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();  // the half before is done: its registers and its X may go
  }
  __device__ void next_block() {
    x += kN * 128 / 16;
  }
  __device__ void finish(Accumulators<kN>&) {
    ptx::wgmma_wait<0>();
  }
};

/// The same by mma.sync: warps need not meet, which for few tokens is worth more than X's way through
/// registers costs. Products are half a block late: their instructions stand among those that assemble the
/// next, or the warp would wait for each of them in turn.
template <int kN>
struct WarpMultiplier {
  struct Waiting {
    uint32_t a[kStripTiers][8];
    uint32_t x[kN / 8][4];
  };
  int x_of_lane;
  uint32_t x;  // this lane's row of X for ldmatrix
  Waiting halves[2];

  __device__ explicit WarpMultiplier(int lane) : x_of_lane(lane % 8 * kXPitch + lane / 8 * 16) { forget(); }
  __device__ void enter_stage(uint32_t x_stage) { x = x_stage + x_of_lane; }
  __device__ void load(int half) {
#pragma unroll
    for (int i = 0; i < kN / 8; ++i) ptx::load_matrix_x4(halves[half].x[i], x + half * 64 + i * 8 * kXPitch);
  }
  /// Multiplies what `multiply` has left of that half.
  __device__ void catch_up(Accumulators<kN>& acc, int half) const {
    const Waiting& h = halves[half];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int t = 0; t < kStripTiers; ++t) {
#pragma unroll
        for (int i = 0; i < kN / 8; ++i)
          ptx::mma_16816(acc.set[j % Accumulators<kN>::kSets][t] + 4 * i, h.a[t] + 4 * j, h.x[i][2 * j],
                         h.x[i][2 * j + 1]);
      }
    }
  }
  __device__ void multiply(Accumulators<kN>&, const uint32_t (&a)[kStripTiers][8], int half) {
#pragma unroll
    for (int i = 0; i < 8 * kStripTiers; ++i) halves[half].a[i / 8][i % 8] = a[i / 8][i % 8];
  }
  __device__ void next_block() {
    x += kBlockColumns * 2;
  }
  /// All products are in `acc`, and none is left.
  __device__ void finish(Accumulators<kN>& acc) {
    catch_up(acc, 1);
    forget();
  }

 private:
  /// Nothing waits. X too, or a number that is none would meet the next team's rows.
  __device__ void forget() {
#pragma unroll
    for (int i = 0; i < 8 * kStripTiers; ++i) halves[1].a[i / 8][i % 8] = 0;
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) halves[1].x[i / 4][i % 4] = 0;
  }
};
template <int kN>
using Multiplier = std::conditional_t<kUseWgmma<kN>, WarpgroupMultiplier<kN>, WarpMultiplier<kN>>;

using Decoder = NibbleDecoder<kRingRows>;

__device__ inline void take(const StripWindows& windows, StripValues& values) {
#pragma unroll
  for (int i = 0; i < 4 * kStripTiers; ++i) values[i % 2][i / 2].take(windows[i % 2][i / 2]);
}
__device__ inline void take_now(const StripWindows& windows, StripValues& values) {
#pragma unroll
  for (int i = 0; i < 4 * kStripTiers; ++i) values[i % 2][i / 2].take_now(windows[i % 2][i / 2]);
}
__device__ inline void assemble(const StripValues& values, uint32_t (&a)[kStripTiers][8]) {
#pragma unroll
  for (int t = 0; t < kStripTiers; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) values[t][i].assemble(a[t] + 2 * i);
  }
}

/// A multiplying warp's way through its strips' streams.
template <int kN>
struct StripCursor {
  std::conditional_t<kFeedingWarp<kN>, FeedingWarp, OwnFeed> feed;
  uint32_t map;           // shared address of the WarpMap
  uint32_t record = 0;    // counts records, of which the lowest bits are slot and parity
  uint32_t arrived = 0;   // pieces waited for
  uint32_t given_up = 0;  // pieces let go
  uint32_t origin = 0;    // the strip's first piece, counted like those
  StreamPlace places[kStripTiers];
  struct {
    uint32_t starts, first_row, counts, masks[kStripTiers];
  } head;  // of the chunk to enter next

  __device__ uint32_t record_address(uint32_t which) const {
    return map + uint32_t(offsetof(WarpMap, record)) + (which & 1) * uint32_t(sizeof(WarpMap::record[0]));
  }
  __device__ void await_pieces(uint32_t count) {
#pragma unroll 1
    for (; count > 0; --count, ++arrived)
      ptx::barrier_wait(map + uint32_t(offsetof(WarpMap, piece_full)) + 8 * (arrived % kRingPieces),
                        arrived / kRingPieces & 1);
  }
  /// Waits for the record after `ahead` more and starts to read its head.
  __device__ void read_head(uint32_t ahead, int lane) {
    const uint32_t next = record + ahead, at = record_address(next);
    ptx::barrier_wait(map + uint32_t(offsetof(WarpMap, record_full)) + 8 * (next & 1), next >> 1 & 1);
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                 : "=r"(head.first_row), "=r"(head.counts)
                 : "r"(at + uint32_t(offsetof(ChunkHead, first_row))));
    head.starts = load_shared(at + 4 * lane);
    load_masks(at + uint32_t(sizeof(ChunkHead)) + 8 * lane, head.masks);
  }
  __device__ static void load_masks(uint32_t at, uint32_t (&masks)[kStripTiers]) {
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(masks[0]), "=r"(masks[1]) : "r"(at));
  }
  /// Goes on with the chunk whose head was read: waits for the pieces of its first block.
  __device__ void enter(const Problem& p, bool first_of_strip, bool first_of_run) {
    const uint32_t piece = head.first_row / kPieceRows;
    if (first_of_strip) {
      origin = given_up - piece;
      feed.begin_strip(p, given_up);
    }
    await_pieces((head.counts >> 24 & 15u) + (first_of_run ? head.counts >> 28 : 0u));
    const uint32_t rows_before = (piece + origin) * (kPieceRows * 32);
#pragma unroll
    for (int t = 0; t < kStripTiers; ++t) {
      const uint32_t start = head.starts >> (16 * t) & 0xffffu;
      places[t] = {map + uint32_t(start_track(start)) * 4, start_position(start) + rows_before};
    }
  }
  /// What the head says of the border behind a block whose windows have all been read. Gives up first: what
  /// is waited for may have to come in its place.
  __device__ void pass(const Problem& p, uint32_t event) {
    if (event >= 16) {
      __syncwarp();  // all lanes have read what is given up
#pragma unroll 1
      for (uint32_t i = event >> 4; i > 0; --i, ++given_up) feed.give_up_piece(p, given_up);
    }
    if (event & 15u) await_pieces(event & 15u);
  }
  /// All masks have been read.
  __device__ void close(const Problem& p) {
    __syncwarp();  // by all lanes
    feed.give_up_record(p, record, given_up);
    ++record;
  }
};

/// acc += chunk · X; the chunk has been entered, its first half block's values are on their way. Enters the
/// next one, if there is one: nothing waits at the border. The last products may still be due on return.
template <int kN>
__device__ void multiply_chunk(const Problem& p, uint32_t x_stages, const Decoder& decoder,
                               StripCursor<kN>& cursor, StripWindows& windows, bool more,
                               bool next_is_first_of_strip, XStage<kN>& x, int lane,
                               Multiplier<kN>& multiplier, Accumulators<kN>& acc) {
  constexpr bool kOneStage = kXBlocks<kN> >= kMaxChunkBlocks;
  uint32_t masks[kStripTiers] = {cursor.head.masks[0], cursor.head.masks[1]};
  uint32_t events = cursor.record_address(cursor.record) + uint32_t(offsetof(ChunkHead, events));
  uint32_t mask = events + uint32_t(sizeof(ChunkHead) - offsetof(ChunkHead, events)) + 8 * lane;
  for (int left = int(cursor.head.counts >> 16 & 255u); left > 0;) {
    int in_stage = kOneStage ? left : min(p.x_blocks, left);
    multiplier.enter_stage(x_stages + x.stage * kXStageBytes<kN>);
    x.wait();
#pragma unroll 1
    do {
      uint32_t a[kStripTiers][8], b[kStripTiers][8], event;
      StripEntries entries;
      StripValues values;
      decoder.load_entries(masks, 1, entries);
      mask += kMaskRowBytes;
      StripCursor<kN>::load_masks(mask, masks);  // behind the last block: something, unused
      multiplier.load(0);
      take(windows, values);
      decoder.load_values(entries, cursor.places, windows);
      asm volatile("ld.shared.u8 %0, [%1];" : "=r"(event) : "r"(events));
      multiplier.catch_up(acc, 1);
      assemble(values, a);
      multiplier.multiply(acc, a, 0);
      decoder.load_entries(masks, 0, entries);
      multiplier.load(1);
      take_now(windows, values);
      if (kUseWgmma<kN>) x.let_go(lane);
      if (event != 0 || left == 1) {
        if (event) cursor.pass(p, event);
        if (left == 1 && more) {
          cursor.read_head(1, lane);
          decoder.load_entries(cursor.head.masks, 0, entries);
          cursor.enter(p, next_is_first_of_strip, false);
        }
      }
      decoder.load_values(entries, cursor.places, windows);
      multiplier.catch_up(acc, 0);
      assemble(values, b);
      multiplier.multiply(acc, b, 1);
      multiplier.next_block();
      ++events;
      --left;
    } while (kOneStage ? left > 0 : --in_stage > 0);
    x.next();
    if (!kUseWgmma<kN>) x.let_go(lane);
  }
}

template <int kN>
__global__ void __launch_bounds__(kThreads<kN>, 1)
    spmm_stream_kernel(const __grid_constant__ Problem p, const __grid_constant__ CUtensorMap x_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& shared = *reinterpret_cast<SharedMap<kN>*>(raw);
  ptx::let_next_grid_start();
  const int warp = __shfl_sync(~0u, int(threadIdx.x) / 32, 0);  // known to be uniform
  const int lane = int(threadIdx.x) % 32;
  if (warp >= kSpmmWarps) {  // X takes longest to come
    if (warp == kSpmmWarps) {
      if (lane == 0) {
        if (kUseWgmma<kN> && p.x_by_copy) ptx::prefetch_map(&x_map);
        for (int i = 0; i < kXStages; ++i) {
          ptx::barrier_init(ptx::shared_address(&shared.x_full[i]), x_writers<kN>(p));
          ptx::barrier_init(ptx::shared_address(&shared.x_empty[i]), kSpmmWarps * x_readers(p));
        }
      }
      ptx::barrier_init_fence();
      __syncwarp();
    } else if (warp == kSpmmWarps + 1) {
      if (lane == 0) ptx::barrier_init(ptx::shared_address(&shared.ends), 32);
      ptx::barrier_init_fence();
      __syncwarp();
    }
    ptx::named_barrier_arrive(kStartBarrier, kThreads<kN>);  // X's barriers are there
    if (kFeedingWarp<kN> && warp == kSpmmWarps) ptx::named_barrier_arrive(kFeedBarrier, kFeedThreads);
    if constexpr (kSpareRegisters<kN>) ptx::registers_down<kSpareWarpRegisters>();
    if (warp == kSpmmWarps) {
      bring_x<kN>(p, &x_map, shared, lane);
    } else if (warp == kSpmmWarps + 1) {
      prepare_ends<kN>(p, shared, lane);
    } else if (kFeedingWarp<kN> && warp == kSpmmWarps + 2) {
      const RunStart start = p.runs[int(blockIdx.x) * kSpmmWarps + lane % kSpmmWarps];
      ptx::named_barrier(kFeedBarrier, kFeedThreads);
      feed_rings<kN>(p, shared, start, lane);
    }
    return;
  }
  if constexpr (kSpareRegisters<kN>) ptx::registers_up<kMultiplyRegisters>();

  const uint32_t map = once(ptx::shared_address(&shared.warp[warp]));
  const uint64_t policy = ptx::evict_first_policy();
  const RunStart start = p.runs[int(blockIdx.x) * kSpmmWarps + warp];
  if (lane == 0) {
    const uint32_t readers = kFeedingWarp<kN> ? lanes_followed(p.for_racecheck) : 1;
    for (int i = 0; i < kWarpBarriers<kN>; ++i)
      ptx::barrier_init(map + uint32_t(offsetof(WarpMap, piece_full)) + 8 * i,
                        i < kRingPieces + 2 ? 1 : readers);
  }
  ptx::barrier_init_fence();
  __syncwarp();  // its barriers before the warp's copies
  if (kFeedingWarp<kN>) ptx::named_barrier_arrive(kFeedBarrier, kFeedThreads);
  bring_first(p, start, map, policy);
  if (warp == 0) shared.table.fill(lane);
  const int begin = p.split.first_unit(int(blockIdx.x)), end = p.split.first_unit(int(blockIdx.x) + 1);
  int team = p.split.team_of(begin);
  const ChunkWalk walk(p, begin - team * p.shape.chunks);
  ptx::named_barrier(kStartBarrier, kThreads<kN>);  // all barriers and the table before others use them
  const RunOfWarp run(p, start, walk, begin, end, team, warp);
  StripCursor<kN> cursor{.feed = {p, run, map, policy}, .map = map};
  const uint32_t x_stages = once(ptx::shared_address(shared.x));
  const uint32_t ends = x_stages + uint32_t(offsetof(SharedMap<kN>, ends));
  const uint32_t x_scale = x_stages + uint32_t(offsetof(SharedMap<kN>, x_scale));
  cursor.feed.fill(p, x_stages + uint32_t(offsetof(SharedMap<kN>, x_full)));
  const Decoder decoder(x_stages + uint32_t(offsetof(SharedMap<kN>, table)));
  XStage<kN> x{.full = x_stages + uint32_t(offsetof(SharedMap<kN>, x_full)), .by_all = !p.x_by_copy};
  Multiplier<kN> multiplier(lane);
  Accumulators<kN> acc;
  acc.clear();
  cursor.read_head(0, lane);
  StripEntries entries;
  StripWindows windows;
  decoder.load_entries(cursor.head.masks, 0, entries);
  cursor.enter(p, true, true);
  decoder.load_values(entries, cursor.places, windows);
  for (int unit = begin, team_begin = team * p.shape.chunks;;) {
    const int team_end = team_begin + p.shape.chunks, team_end_unit = min(team_end, end);
#pragma unroll 1
    for (; unit < team_end_unit; ++unit) {
      multiply_chunk<kN>(p, x_stages, decoder, cursor, windows, unit + 1 < end, unit + 1 == team_end_unit, x,
                         lane, multiplier, acc);
      cursor.close(p);
    }
    multiplier.finish(acc);
    if (unit == end) break;
    ptx::wait_for_previous_grids();
    ptx::barrier_wait(ends, 0);
    end_team<kN>(p, x_scale, team, begin > team_begin, warp, lane, acc.sums());
    acc.clear();
    __syncwarp();  // tells the compiler that the warp is whole: or it gives up uniform registers
    ++team;
    team_begin = team_end;
  }
  ptx::wait_for_previous_grids();
  ptx::barrier_wait(ends, 0);
  end_run<kN>(p, x_scale, shared.last_team, x_stages + uint32_t(offsetof(SharedMap<kN>, entry_offsets)), team,
              reinterpret_cast<float4*>(shared.warp[warp].ring) + lane, warp, lane, acc.sums());
#else
  __trap();  // sm_90a only; plans choose this kernel nowhere else
#endif
}

}  // namespace

template <int kN>
void launch(const Problem& problem, int grid, const CUtensorMap& map, cudaStream_t stream) {
  static_assert(sizeof(SharedMap<kN>) <= size_t(kSpmmSharedBytes));
  const auto kernel = spmm_stream_kernel<kN>;
  SPINFER_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(sizeof(SharedMap<kN>))));
  cudaLaunchAttribute dependent{};
  dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  dependent.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(grid));
  config.blockDim = dim3(unsigned(kThreads<kN>));
  config.dynamicSmemBytes = sizeof(SharedMap<kN>);
  config.stream = stream;
  config.attrs = &dependent;
  config.numAttrs = 1;
  SPINFER_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, problem, map));
}

// One instance a compilation (kernels/cuda/CMakeLists.txt).
template void launch<SPINFER_SPMM_TOKENS>(const Problem&, int, const CUtensorMap&, cudaStream_t);

}  // namespace spinfer::cuda::spmm
