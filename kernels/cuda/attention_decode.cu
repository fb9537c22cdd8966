// Decode attention: one new token a sequence over its paged context, on tensor cores (mma.sync m16n8k16).
//
// Grid: (parts, kv heads × chunks of kHeads of their q heads, sequences); the parts of a (sequence, kv head)
// are a cluster (sm_90; elsewhere there is one part). Part r takes the keys [64·i, 64·i + 64) with i ≡ r
// modulo the parts, each of its four warps 16 of them; where a part starts does not depend on the context, so
// its first block ids are fetched beside the context's length. K and V are read once for the q heads of the
// chunk: up to 8 of them are the columns of the products Sᵀ = K·Qᵀ and Oᵀ = Vᵀ·Pᵀ; missing ones are zero
// columns, which cost nothing where memory is the limit.
//
// Shared memory: a ring of kStages stages a warp, a stage being the 16 rows of K or of V that a product
// takes, copied (cp.async) as they lie in the cache, 512 bytes a warp and instruction: whole lines matter.
// Rows have a pitch of an odd number of 16-byte units and the product's row g is row 2·σ(g) of the stage, row
// g + 8 the next, which makes all fragment loads free of bank conflicts. Lane (g, q) = (lane / 4, lane % 4) loads
//   of K  units 4·c + q of rows g and g + 8: the four words of a unit are columns of two k16 steps. Q is
//         loaded in the same order, so the sum over dims only runs in another order;
//   of V  unit 8·j + g of rows 2q, 2q + 1, 2q + 8, 2q + 9: pairing the words of two rows (prmt) gives the
//         columns m16n8k16 wants, product rows g and g + 8 being neighbouring dims.
//
// The newest tokens may be rotated and stored in the same pass (DecodeAppend): every block rotates its q
// heads as it loads them, and the warp that owns the newest key takes k and v from qkv, writes them to the
// cache and over what was copied in their place. Then everything up to the first copies runs before the wait
// for the kernel that makes qkv.
//
// A warp keeps an online softmax (maximum, sum, accumulators); warps are merged through shared memory, parts
// through the cluster's, both in fixed order. Weights are rounded to fp16 for the second product.
//
// Memory: 4·head_dim bytes a key and kv head, read once.
// Measured on an H200 (scripts/results/h200_ops.json; read bandwidth 4.65 TB/s), 64 sequences, 2048 tokens
// with one q head a kv head, 4096 with 4 and 8: head_dim 128 4.15, 4.11 and 4.09 TB/s; 96 4.04, 3.95, 3.90;
// 80 3.95, 3.85, 3.82; 64 4.14, 3.96, 3.95. Few short contexts, 32 heads of 128, appending included: one of
// 64 tokens 4.2 µs, 8 of 192 10.3 µs, 32 of 192 27.8 µs, of which some 4 µs are latency: the launch, lengths,
// then keys, then the merge.
//
// Limits: head_dim a multiple of 8 up to 256, block size a power of two, at least 16.
#include <cuda_fp16.h>

#include "kernels/check.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/rotate.cuh"

namespace spinfer::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kHeads = 8;
constexpr int kTile = 16;  // keys a warp takes at once
static_assert(kWarps * kTile == kDecodeKeys);

/// Four words: 8 halves of one row.
struct Words {
  uint32_t w[4];
};

/// What to multiply sums by when the maximum grows from `from` to `to`; 0 where nothing was seen yet.
__device__ inline float rescale_of(float from, float to) {
  return from == -INFINITY ? 0.0f : ptx::exp2_approx(from - to);
}

__device__ inline uint32_t pack(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

/// The largest or the sum over the lanes with the same q.
template <class Combine>
__device__ inline float over_groups(float x, const Combine& combine) {
#pragma unroll
  for (int offset = 4; offset < 32; offset *= 2) x = combine(x, __shfl_xor_sync(~0u, x, offset));
  return x;
}

/// σ: which pair of a stage's rows the product's rows g and g + 8 are. σ(g) and σ(g ^ 1) differ by 2 modulo
/// 4, and the σ of even g, and of odd g, are 0, 1, 2, 3 modulo 4: both kinds of fragment loads touch all
/// banks.
__device__ inline int row_pair(int g) {
  return (g & 4) | ((g & 1) << 1 ^ (g >> 1 & 1) ^ (g >> 1 & 2));
}

/// How a head size is served: head_dim ≤ kDim, or known to be kDim.
template <int kDim, bool kExact>
struct Shape {
  static constexpr int kDims = kDim;
  static constexpr int kChunks = (kDim + 31) / 32;              // units of a K row a lane loads
  static constexpr int kPlanes = (kDim + 63) / 64;              // and of a V row
  static constexpr int kCopies = (kDim / 8 * kTile + 31) / 32;  // units of a stage a lane copies
  static constexpr int kPitch = kDim / 8 | 1;                   // units
  static constexpr int kStages = kDim <= 64 ? 4 : 3;

  __device__ static int units(const AttentionTask& t) { return kExact ? kDim / 8 : t.head_dim / 8; }
};

template <class Shape>
using Stage = uint4[kTile * Shape::kPitch];

/// Keys and values as one part reads them.
struct Source {
  uint4* k;  ///< of the kv head, in block 0
  uint4* v;
  const int32_t* blocks;
  int max_blocks;
  int block_stride;  ///< units of all kv heads of a block
  int context;
  int part, parts;
};

/// The newest token of a sequence, if it is to be rotated and stored.
struct Newest {
  bool given = false;
  bool rotates = false;
  float angle = 0;   ///< of pair threadIdx.x
  float2* rotation;  ///< shared: cosine and sine of pair i, [head_dim / 2]
  const uint4* k;    ///< of the kv head, in qkv
  const uint4* v;
  int slot = -1;  ///< where to store them; < 0: nowhere

  /// All threads of the block: makes the rotation.
  __device__ void rotate_pairs(int pairs) const {
    if (!rotates) return;
    float2 turn;
    sincosf(angle, &turn.y, &turn.x);
    if (int(threadIdx.x) < pairs) rotation[threadIdx.x] = turn;
    __syncthreads();  // the rotation is there
  }
};
static_assert(kThreads >= 256 / 2);  // a thread for each pair of the largest head

/// A unit of a head, and the unit it is paired with.
struct Pair {
  uint4 mine = {}, other = {};

  Pair() = default;
  __device__ Pair(const uint4* head, int unit, int units, bool rotates) : mine(head[unit]) {
    const int half = units / 2;
    if (rotates) other = head[unit < half ? unit + half : unit - half];
  }
  __device__ uint4 rotated(int unit, int units, const Newest& newest) const {
    if (!newest.rotates) return mine;
    const bool first = unit < units / 2;
    const float2* turns = newest.rotation + (first ? unit : unit - units / 2) * kVec;
    const auto* x = reinterpret_cast<const __half2*>(&mine);
    const auto* y = reinterpret_cast<const __half2*>(&other);
    Vec8 result;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 a = __half22float2(x[i]), b = __half22float2(y[i]);
      const float2 low = turns[2 * i], high = turns[2 * i + 1];
      result.pairs[i] = first ? __floats2half2_rn(rotated_first(a.x, b.x, low.x, low.y),
                                                  rotated_first(a.y, b.y, high.x, high.y))
                              : __floats2half2_rn(rotated_second(b.x, a.x, low.x, low.y),
                                                  rotated_second(b.y, a.y, high.x, high.y));
    }
    return *reinterpret_cast<const uint4*>(&result);
  }
};

/// One warp's softmax and accumulators over its keys. Columns are heads: a lane has heads 2q and 2q + 1.
template <class Shape>
class WarpState {
 public:
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};  ///< of this lane's keys only, until the end
  float acc[Shape::kPlanes][4][4] =
      {};  ///< [plane][u]: dims 64·plane + 8·g + 2·u + {0, 0, 1, 1}, heads 2q + {0, 1}

  __device__ WarpState(const AttentionTask& t, const Source& s, Stage<Shape>* stages)
      : t_(t), s_(s), stages_(stages) {
    block_id_ = fetch_block_ids(0);
    tiles_ = first_key(0) < s_.context ? (s_.context - first_key(0) - 1) / step() + 1 : 0;
  }

  /// Starts the first copies.
  __device__ void start() {
    for (int i = 0; i < Shape::kStages - 1; ++i) fetch(i);
  }

  /// Takes in the warp's keys, after `start`. The warp that owns the newest stores it, if `stores`.
  __device__ void attend(const uint4* queries, int heads, const Newest& newest, bool stores) {
    const int units = Shape::units(t_), newest_key = s_.context - 1;
    // Loads first: the rotation is made while they are under way.
    Pair pairs[Shape::kChunks], new_pair;
    uint4 new_k, new_v;
#pragma unroll
    for (int c = 0; c < Shape::kChunks; ++c)
      if (g() < heads && 4 * c + q() < units)
        pairs[c] = Pair(queries + g() * units, 4 * c + q(), units, newest.rotates);
    const bool owns =
        newest.given && newest_key >= first_key(0) && (newest_key - first_key(0)) % step() < kTile;
    const int newest_tile = owns ? (newest_key - first_key(0)) / step() : -1;
    if (owns && lane() < units) {
      new_pair = Pair(newest.k, lane(), units, newest.rotates);
      new_v = newest.v[lane()];
    }
    newest.rotate_pairs(4 * units);
#pragma unroll
    for (int c = 0; c < Shape::kChunks; ++c) {
      uint4 words = make_uint4(0, 0, 0, 0);
      if (4 * c + q() < units) words = pairs[c].rotated(4 * c + q(), units, newest);
      query_[c] = {{words.x, words.y, words.z, words.w}};
    }
    if (owns && lane() < units) {
      new_k = new_pair.rotated(lane(), units, newest);
      if (stores && newest.slot >= 0) {
        const int64_t offset = int64_t{newest.slot >> t_.block_shift} * s_.block_stride +
                               (newest.slot & (t_.block_size - 1)) * units + lane();
        s_.k[offset] = new_k;
        s_.v[offset] = new_v;
      }
    }
    for (int tile = 0; tile < tiles_; ++tile) {
      const int left = s_.context - first_key(tile);
      float scores[4] = {};
      advance(2 * tile);
      if (tile == newest_tile) replace(stages_[2 * tile % Shape::kStages], left - 1, new_k);
      multiply_queries(stages_[2 * tile % Shape::kStages], scores);
      softmax(scores, t_.scale * 1.4426950408889634f, left);
      advance(2 * tile + 1);
      if (tile == newest_tile) replace(stages_[(2 * tile + 1) % Shape::kStages], left - 1, new_v);
      multiply_values(stages_[(2 * tile + 1) % Shape::kStages], scores);
    }
    ptx::copy_async_wait<0>();
  }

 private:
  const AttentionTask& t_;
  const Source& s_;
  Stage<Shape>* stages_;         ///< the warp's own
  int tiles_;                    ///< of 16 keys, this warp's
  int32_t block_id_;             ///< of the tile 32·i + lane
  Words query_[Shape::kChunks];  ///< head g, units as in K's fragments

  __device__ static int lane() {
    return int(threadIdx.x) % 32;
  }
  __device__ static int g() {
    return lane() / 4;
  }
  __device__ static int q() {
    return lane() % 4;
  }
  __device__ int step() const {
    return s_.parts * kDecodeKeys;
  }
  __device__ int first_key(int tile) const {
    return tile * step() + s_.part * kDecodeKeys + int(threadIdx.x) / 32 * kTile;
  }

  __device__ int32_t fetch_block_ids(int tile) const {
    const int index = first_key(tile + lane()) >> t_.block_shift;
    return index < s_.max_blocks ? s_.blocks[index] : 0;
  }

  /// Row `row` of a stage becomes `unit`, a unit a lane.
  __device__ void replace(Stage<Shape>& stage, int row, const uint4& unit) {
    if (lane() < Shape::units(t_)) stage[row * Shape::kPitch + lane()] = unit;
    __syncwarp();  // the row is whole before it is read
  }

  /// Starts the copy of stage `i`: K of tile i / 2, or V where i is odd. Rows past the context become zero
  /// and are not read.
  __device__ void fetch(int i) {
    const int tile = i / 2;
    if (tile < tiles_) {
      if (tile > 0 && tile % 32 == 0 && i % 2 == 0) block_id_ = fetch_block_ids(tile);
      const int64_t block = __shfl_sync(~0u, block_id_, tile % 32);
      const int key = first_key(tile), units = Shape::units(t_), left = s_.context - key;
      const uint4* source =
          (i % 2 ? s_.v : s_.k) + block * s_.block_stride + (key & (t_.block_size - 1)) * units;
      uint4* stage = stages_[i % Shape::kStages];
#pragma unroll
      for (int copy = 0; copy < Shape::kCopies; ++copy) {
        const int unit = copy * 32 + lane(), row = unit / units;
        if (row < kTile)
          ptx::copy_async_16(&stage[row * Shape::kPitch + unit % units], source + unit, row < left ? 16 : 0);
      }
    }
    ptx::copy_async_commit();
  }

  /// Waits for stage `i` and starts the copy that takes the place of the one read before.
  __device__ void advance(int i) {
    ptx::copy_async_wait<Shape::kStages - 2>();
    __syncwarp();  // all lanes' copies have arrived, and all have read the stage that is overwritten next
    fetch(i + Shape::kStages - 1);
  }

  __device__ static Words load(const Stage<Shape>& stage, int row, int unit, bool inside) {
    uint4 v = make_uint4(0, 0, 0, 0);
    if (inside) v = stage[row * Shape::kPitch + unit];
    return {{v.x, v.y, v.z, v.w}};
  }

  /// scores: keys 2·σ(g) twice, the next one twice; heads 2q, 2q + 1.
  __device__ void multiply_queries(const Stage<Shape>& stage, float (&scores)[4]) {
    const int row = 2 * row_pair(g());
#pragma unroll
    for (int c = 0; c < Shape::kChunks; ++c) {
      const bool inside = 4 * c + q() < Shape::units(t_);
      const Words low = load(stage, row, 4 * c + q(), inside),
                  high = load(stage, row + 1, 4 * c + q(), inside);
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const uint32_t a[4] = {low.w[2 * step], high.w[2 * step], low.w[2 * step + 1], high.w[2 * step + 1]};
        ptx::mma_16816(scores, a, query_[c].w[2 * step], query_[c].w[2 * step + 1]);
      }
    }
  }

  __device__ void multiply_values(const Stage<Shape>& stage, const float (&weights)[4]) {
    const uint32_t b0 = ptx::transpose_8x8(pack(weights[0], weights[1]));
    const uint32_t b1 = ptx::transpose_8x8(pack(weights[2], weights[3]));
    const int even = 2 * row_pair(2 * q()), odd = 2 * row_pair(2 * q() + 1);
#pragma unroll
    for (int j = 0; j < Shape::kPlanes; ++j) {
      const int unit = 8 * j + g();
      const bool inside = unit < Shape::units(t_);
      const Words v0 = load(stage, even, unit, inside), v1 = load(stage, odd, unit, inside),
                  v8 = load(stage, even + 1, unit, inside), v9 = load(stage, odd + 1, unit, inside);
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        const uint32_t a[4] = {__byte_perm(v0.w[u], v1.w[u], 0x5410), __byte_perm(v0.w[u], v1.w[u], 0x7632),
                               __byte_perm(v8.w[u], v9.w[u], 0x5410), __byte_perm(v8.w[u], v9.w[u], 0x7632)};
        ptx::mma_16816(acc[j][u], a, b0, b1);
      }
    }
  }

  /// Scores become weights; keys from `left` on have none.
  __device__ void softmax(float (&scores)[4], float scale, int left) {
    const int key = 2 * row_pair(g());
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      // Rounded products, so that the largest minus the maximum is 0 exactly.
      const float low = key < left ? __fmul_rn(scores[h], scale) : -INFINITY;
      const float high = key + 1 < left ? __fmul_rn(scores[2 + h], scale) : -INFINITY;
      // A tile holds at least one key, so the maximum is finite from the first one on.
      const float largest =
          fmaxf(max[h], over_groups(fmaxf(low, high), [](float a, float b) { return fmaxf(a, b); }));
      const float rescale = rescale_of(max[h], largest);
      max[h] = largest;
      scores[h] = ptx::exp2_approx(low - largest);
      scores[2 + h] = ptx::exp2_approx(high - largest);
      sum[h] = sum[h] * rescale + (scores[h] + scores[2 + h]);
#pragma unroll
      for (int j = 0; j < Shape::kPlanes; ++j)
#pragma unroll
        for (int u = 0; u < 4; ++u) {
          acc[j][u][h] *= rescale;
          acc[j][u][2 + h] *= rescale;
        }
    }
  }
};

/// Results to be merged: of a warp, or of a part.
template <class Shape>
struct Partial {
  float acc[kHeads][Shape::kDims];
  float max[kHeads];
  float sum[kHeads];
};

template <class Shape>
struct Shared {
  union {
    Stage<Shape> stages[kWarps][Shape::kStages];
    Partial<Shape> warps[kWarps];  ///< when all warps are through
  };
  Partial<Shape> part;
  float2 rotation[Shape::kDims / 2];  ///< of the newest token
};

template <class Shape>
__device__ void leave(Partial<Shape>& partial, const WarpState<Shape>& state, int heads) {
  const int g = int(threadIdx.x) % 32 / 4, q = int(threadIdx.x) % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int head = 2 * q + h;
    const float sum = over_groups(state.sum[h], [](float a, float b) { return a + b; });
    if (head >= heads) continue;
    if (g == 0) {
      partial.max[head] = state.max[h];
      partial.sum[head] = sum;
    }
#pragma unroll
    for (int j = 0; j < Shape::kPlanes; ++j) {
      if (64 * j + 8 * g >= Shape::kDims) continue;
      float4* target = reinterpret_cast<float4*>(&partial.acc[head][64 * j + 8 * g]);
#pragma unroll
      for (int i = 0; i < 2; ++i)
        target[i] = make_float4(state.acc[j][2 * i][h], state.acc[j][2 * i][2 + h],
                                state.acc[j][2 * i + 1][h], state.acc[j][2 * i + 1][2 + h]);
    }
  }
}

/// Four neighbouring accumulators of a head with its maximum and sum.
struct Merged {
  float4 acc = make_float4(0, 0, 0, 0);
  float max = -INFINITY, sum = 0;
};

/// Adds `count` partials in order. `at(i)` is the i-th.
template <class At>
__device__ inline Merged merge(int count, int head, int dim, const At& at) {
  Merged merged;
#pragma unroll 4
  for (int i = 0; i < count; ++i) merged.max = fmaxf(merged.max, at(i)->max[head]);
#pragma unroll 4
  for (int i = 0; i < count; ++i) {
    const auto* partial = at(i);
    const float factor = rescale_of(partial->max[head], merged.max);
    const float4 x = *reinterpret_cast<const float4*>(&partial->acc[head][dim]);
    merged.sum += partial->sum[head] * factor;
    merged.acc.x += x.x * factor;
    merged.acc.y += x.y * factor;
    merged.acc.z += x.z * factor;
    merged.acc.w += x.w * factor;
  }
  return merged;
}

template <class Shape>
__global__ void __launch_bounds__(kThreads, Shape::kDims <= 128 ? 4 : 2)
    attention_decode_kernel(AttentionTask t, DecodeAppend append, int head_chunks) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<Shape>*>(memory);
  let_successor_start();
  // What is read before the wait is in place since before the step (SequenceBatch).
  if (!append.positions) wait_for_predecessor();
  const int sequence = int(blockIdx.z), parts = int(gridDim.x), part = int(blockIdx.x);
  const int group = t.q_heads / t.kv_heads, kv_head = int(blockIdx.y) / head_chunks;
  const int first_head = kv_head * group + int(blockIdx.y) % head_chunks * kHeads;
  const int heads = min(kHeads, (kv_head + 1) * group - first_head);
  const int units = Shape::units(t), head_stride = t.block_size * units;
  const Source source{static_cast<uint4*>(t.k) + kv_head * head_stride,
                      static_cast<uint4*>(t.v) + kv_head * head_stride,
                      t.block_table + int64_t{sequence} * t.max_blocks,
                      t.max_blocks,
                      t.kv_heads * head_stride,
                      t.context_len[sequence],
                      part,
                      parts};
  const int token = t.query_start[sequence], next = t.query_start[sequence + 1];
  WarpState<Shape> state(t, source, shared.stages[threadIdx.x / 32]);
  const bool idle = next - token != 1 || source.context <= 0;  // the whole cluster is
  Newest newest;
  newest.given = append.positions != nullptr;
  newest.rotates = newest.given && append.inv_freq;
  newest.rotation = shared.rotation;
  if (!idle) {
    state.start();
    if (newest.given) newest.slot = append.slots[token];
    if (newest.rotates && int(threadIdx.x) < 4 * units)
      newest.angle = float(append.positions[token]) * append.inv_freq[threadIdx.x];
  }
  if (append.positions) wait_for_predecessor();
  if (idle) return;
  const uint4* row = static_cast<const uint4*>(t.q) + int64_t{token} * (t.q_heads + 2 * t.kv_heads) * units;
  newest.k = row + (t.q_heads + kv_head) * units;
  newest.v = newest.k + t.kv_heads * units;
  state.attend(row + first_head * units, heads, newest, int(blockIdx.y) % head_chunks == 0);
  __syncthreads();  // all warps are through with their stages
  leave(shared.warps[threadIdx.x / 32], state, heads);
  __syncthreads();  // the warps' results are there

  const auto store = [&](int head, int dim, const Merged& m) {
    const float factor = 1.0f / m.sum;
    *reinterpret_cast<uint2*>(static_cast<__half*>(t.out) +
                              (int64_t{token} * t.q_heads + first_head + head) * (8 * units) + dim) =
        make_uint2(pack(m.acc.x * factor, m.acc.y * factor), pack(m.acc.z * factor, m.acc.w * factor));
  };
  for (int i = int(threadIdx.x) * 4; i < heads * 8 * units; i += kThreads * 4) {
    const int head = i / (8 * units), dim = i % (8 * units);
    const Merged m = merge(kWarps, head, dim, [&](int w) { return &shared.warps[w]; });
    if (parts == 1) {
      store(head, dim, m);
      continue;
    }
    *reinterpret_cast<float4*>(&shared.part.acc[head][dim]) = m.acc;
    if (dim == 0) {
      shared.part.max[head] = m.max;
      shared.part.sum[head] = m.sum;
    }
  }
  if (parts == 1) return;
  ptx::cluster_meet();  // all parts' results are there
  for (int i = (part * kThreads + int(threadIdx.x)) * 4; i < heads * 8 * units; i += parts * kThreads * 4) {
    const int head = i / (8 * units), dim = i % (8 * units);
    store(head, dim, merge(parts, head, dim, [&](int p) { return ptx::in_block(&shared.part, p); }));
  }
  ptx::cluster_meet();  // nobody leaves while its results are read
}

template <class Shape>
void run(Context& context, const AttentionTask& task, const DecodeAppend& append, int sequences,
         int max_context) {
  const int chunks = (task.q_heads / task.kv_heads + kHeads - 1) / kHeads, pairs = task.kv_heads * chunks;
  const int parts = decode_parts(context.facts(), int64_t{pairs} * sequences, max_context);
  SPINFER_CUDA_CHECK(cudaFuncSetAttribute(attention_decode_kernel<Shape>,
                                          cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          int(sizeof(Shared<Shape>))));
  if (context.facts().compute_capability >= 90)
    SPINFER_CUDA_CHECK(cudaFuncSetAttribute(attention_decode_kernel<Shape>,
                                            cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  LaunchShape shape{dim3(unsigned(parts), unsigned(pairs), unsigned(sequences)), dim3(kThreads),
                    sizeof(Shared<Shape>)};
  shape.cluster = parts;
  launch(context, "attention_decode", attention_decode_kernel<Shape>, shape, task, append, chunks);
}

/// Calls f with the Shape that serves the head size.
template <class F>
auto with_shape(int head_dim, const F& f) {
  switch (head_dim) {
    case 64:
      return f(Shape<64, true>());
    case 80:
      return f(Shape<80, true>());
    case 96:
      return f(Shape<96, true>());
    case 128:
      return f(Shape<128, true>());
  }
  if (head_dim <= 128) return f(Shape<128, false>());
  return f(Shape<256, false>());
}

}  // namespace

int decode_shared_bytes(int head_dim) {
  return with_shape(head_dim, []<class S>(S) { return int(sizeof(Shared<S>)); });
}

void attention_decode(Context& context, const AttentionTask& task, const DecodeAppend& append, int sequences,
                      int max_context) {
  check(sequences <= 65535, "attention: {} sequences in a batch: must be at most 65535", sequences);
  with_shape(task.head_dim, [&]<class S>(S) { run<S>(context, task, append, sequences, max_context); });
}

}  // namespace spinfer::cuda
