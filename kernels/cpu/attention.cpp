// Causal attention over the paged cache, for prefill, chunked prefill and decode alike.
//
// A work item is (sequence, kv head, up to kTileRows query rows). A query row is one (token, q head of the kv
// head's group) pair, token-major, so that grouped-query attention reads each cache block once for the whole
// tile. The item walks the sequence's blocks from the first on with an online softmax (running maximum,
// running sum, accumulators rescaled when the maximum grows), all in fp32.
//
// What a row computes depends on the row and its context alone: blocks in order, keys in order within a
// block, and only the keys the row may see. Tiling, chunking, batch and threads change which rows share a
// cache line, not one bit of the result. No key past the end of the context is read: the rest of its block
// may hold anything.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/simd-inl.h"

#include <hwy/cache_control.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/check.h"
#include "kernels/cpu/ops.h"

#ifndef SPINFER_KERNELS_CPU_ATTENTION_TYPES_
#define SPINFER_KERNELS_CPU_ATTENTION_TYPES_
namespace spinfer::cpu {

constexpr int kTileRows = 32;  // q and accumulators of a tile: 2 · 32 · 128 · 4 bytes = 32 KiB, the L1 cache
constexpr int kMaxHeadDim = 512;  // bounds the tile's memory on the stack: 2 · 32 · 512 · 4 = 128 KiB
constexpr int kMaxBlock = 256;

struct AttentionItem {
  int sequence;
  int kv_head;
  int first_row;  ///< of the sequence's query_len · group rows
  int rows;       ///< ≤ kTileRows
};

}  // namespace spinfer::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace spinfer::cpu::HWY_NAMESPACE {

/// Query rows on their way through the context.
struct Tile {
  int rows;
  int head_dim;
  int seen[kTileRows];                             ///< keys row r may see: its position + 1
  float max[kTileRows];                            ///< running maximum of the scores
  float sum[kTileRows];                            ///< running sum of exp(score − max)
  alignas(64) float q[kTileRows * kMaxHeadDim];    ///< [rows][head_dim], times scale
  alignas(64) float acc[kTileRows * kMaxHeadDim];  ///< [rows][head_dim], sum of exp(score − max) · v
  alignas(
      64) float p[kTileRows * kMaxBlock];  ///< [rows][kMaxBlock], scores, then weights of the current block
};

/// p[r][j] = q[r] · k[j] for kRows rows and kKeys keys. Every dot product is its own chain over head_dim, the
/// same whatever kRows and kKeys are.
template <int kRows, int kKeys>
HWY_INLINE void dot_products(const float* HWY_RESTRICT q, const Half* HWY_RESTRICT k, int64_t d,
                             float* HWY_RESTRICT p) {
  Vec sums[kRows][kKeys];
  for (auto& row : sums)
    for (Vec& sum : row) sum = zero();
  for_each_vector(d, [&](int64_t i, int64_t count) {
    Vec keys[kKeys];
    for (int j = 0; j < kKeys; ++j) keys[j] = load_first(k + j * d + i, count);
    for (int r = 0; r < kRows; ++r) {
      const Vec query = load_first(q + r * d + i, count);
      for (int j = 0; j < kKeys; ++j) sums[r][j] = hn::MulAdd(query, keys[j], sums[r][j]);
    }
  });
  for (int r = 0; r < kRows; ++r)
    for (int j = 0; j < kKeys; ++j) p[r * kMaxBlock + j] = sum_of_lanes(sums[r][j]);
}

template <int kRows>
HWY_INLINE void scores(const float* q, const Half* k, int64_t d, int keys, float* p) {
  int j = 0;
  for (; j + 4 <= keys; j += 4) dot_products<kRows, 4>(q, k + j * d, d, p + j);
  for (; j < keys; ++j) dot_products<kRows, 1>(q, k + j * d, d, p + j);
}

/// Turns row r's scores of `keys` keys into weights, updating its maximum and sum; rescales its accumulators.
HWY_INLINE void softmax_step(Tile& t, int r, int keys) {
  float* p = t.p + r * kMaxBlock;
  Vec block_max = set(t.max[r]);
  Vec sum = zero();
  for_each_vector(keys, [&](int64_t j, int64_t count) {
    const Vec s = load_first(p + j, count);
    block_max = hn::Max(block_max,
                        count < kLanes ? hn::IfThenElse(hn::FirstN(F32(), size_t(count)), s, block_max) : s);
  });
  const float max = max_of_lanes(block_max);
  for_each_vector(keys, [&](int64_t j, int64_t count) {
    Vec w = exp(hn::Sub(load_first(p + j, count), set(max)));
    if (count < kLanes) w = hn::IfThenElseZero(hn::FirstN(F32(), size_t(count)), w);
    store_first(w, p + j, count);
    sum = hn::Add(sum, w);
  });
  const float rescale = hn::GetLane(exp(set(t.max[r] - max)));
  t.sum[r] = t.sum[r] * rescale + sum_of_lanes(sum);
  t.max[r] = max;
  if (rescale == 1.0f) return;  // multiplying by one changes no bit
  float* acc = t.acc + r * t.head_dim;
  for_each_vector(t.head_dim, [&](int64_t i, int64_t count) {
    store_first(hn::Mul(load_first(acc + i, count), set(rescale)), acc + i, count);
  });
}

/// acc[r] += Σ_j p[r][j] · v[j], keys in order.
template <int kRows>
HWY_INLINE void weighted_values(const float* HWY_RESTRICT p, const Half* HWY_RESTRICT v, int64_t d, int keys,
                                float* HWY_RESTRICT acc) {
  for_each_vector(d, [&](int64_t i, int64_t count) {
    Vec sums[kRows];
    for (int r = 0; r < kRows; ++r) sums[r] = load_first(acc + r * d + i, count);
    for (int j = 0; j < keys; ++j) {
      const Vec value = load_first(v + j * d + i, count);
      for (int r = 0; r < kRows; ++r) sums[r] = hn::MulAdd(set(p[r * kMaxBlock + j]), value, sums[r]);
    }
    for (int r = 0; r < kRows; ++r) store_first(sums[r], acc + r * d + i, count);
  });
}

/// kRows rows, from row r on, take in the first `keys` keys of a block.
template <int kRows>
HWY_INLINE void attend(Tile& t, int r, const Half* k, const Half* v, int keys) {
  const int64_t d = t.head_dim;
  scores<kRows>(t.q + r * d, k, d, keys, t.p + r * kMaxBlock);
  for (int i = 0; i < kRows; ++i) softmax_step(t, r + i, keys);
  weighted_values<kRows>(t.p + r * kMaxBlock, v, d, keys, t.acc + r * d);
}

/// All rows of the tile take in one block (k, v: [block_size][head_dim]) that holds keys [first, first +
/// block_size).
void attend_block(Tile& t, const Half* k, const Half* v, int first, int block_size) {
  int r = 0;
  while (r < t.rows) {
    // Rows are in token order: if the first of four sees the whole block, the others do.
    if (r + 4 <= t.rows && t.seen[r] >= first + block_size) {
      attend<4>(t, r, k, v, block_size);
      r += 4;
    } else {
      const int keys = std::min(t.seen[r] - first, block_size);
      if (keys > 0) attend<1>(t, r, k, v, keys);
      ++r;
    }
  }
}

/// Blocks lie scattered, often a page each, where hardware prefetching does not follow.
void prefetch(const Half* block, int64_t bytes) {
  constexpr int64_t kLine = 64;
  for (int64_t i = 0; i < bytes; i += kLine) hwy::Prefetch(reinterpret_cast<const char*>(block) + i);
}

void attend_item(const AttentionArgs& a, const AttentionItem& item) {
  const int group = a.q_heads / a.kv_heads;
  const int query_begin = a.seqs.query_start[item.sequence];
  const int query_len = a.seqs.query_start[item.sequence + 1] - query_begin;
  const int context = a.seqs.context_len[item.sequence];
  const int64_t d = a.head_dim;
  const auto token_of = [&](int r) { return (item.first_row + r) / group; };
  const auto head_of = [&](int r) { return item.kv_head * group + (item.first_row + r) % group; };
  const auto seen_by = [&](int r) { return context - query_len + token_of(r) + 1; };

  Tile t;
  t.rows = item.rows;
  t.head_dim = a.head_dim;
  const int64_t q_stride = int64_t{a.q_heads + 2 * a.kv_heads} * d;
  for (int r = 0; r < t.rows; ++r) {
    t.seen[r] = seen_by(r);
    t.max[r] = -std::numeric_limits<float>::infinity();
    t.sum[r] = 0;
    const Half* q = a.qkv + (query_begin + token_of(r)) * q_stride + head_of(r) * d;
    for_each_vector(d, [&](int64_t i, int64_t count) {
      store_first(hn::Mul(load_first(q + i, count), set(a.scale)), t.q + r * d + i, count);
      store_first(zero(), t.acc + r * d + i, count);
    });
  }

  const int32_t* blocks = a.seqs.block_table + int64_t{item.sequence} * a.seqs.max_blocks;
  const int last_seen = seen_by(t.rows - 1);
  const int64_t block_bytes = a.block_size * d * int64_t{sizeof(Half)};
  const auto offset_of = [&](int key) {
    return (int64_t{blocks[key / a.block_size]} * a.kv_heads + item.kv_head) * a.block_size * d;
  };
  for (int first = 0; first < last_seen; first += a.block_size) {
    if (const int next = first + a.block_size; next < last_seen) {
      prefetch(a.kv.k + offset_of(next), block_bytes);
      prefetch(a.kv.v + offset_of(next), block_bytes);
    }
    const int64_t offset = offset_of(first);
    attend_block(t, a.kv.k + offset, a.kv.v + offset, first, a.block_size);
  }

  for (int r = 0; r < t.rows; ++r) {
    Half* out = a.out + (int64_t{query_begin + token_of(r)} * a.q_heads + head_of(r)) * d;
    for_each_vector(d, [&](int64_t i, int64_t count) {
      store_first(hn::Div(load_first(t.acc + r * d + i, count), set(t.sum[r])), out + i, count);
    });
  }
}

}  // namespace spinfer::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace spinfer::cpu {

HWY_EXPORT(attend_item);

void attention(DeviceContext& context, const AttentionArgs& a) {
  if (a.append) rope_append(context, *a.append);
  check(a.head_dim >= 1 && a.head_dim <= kMaxHeadDim, "attention: head_dim {} must be 1…{}", a.head_dim,
        kMaxHeadDim);
  check(a.block_size >= 1 && a.block_size <= kMaxBlock, "attention: block size {} must be 1…{}", a.block_size,
        kMaxBlock);
  check(a.kv_heads >= 1 && a.q_heads % a.kv_heads == 0,
        "attention: {} q heads are no multiple of {} kv heads", a.q_heads, a.kv_heads);
  const int group = a.q_heads / a.kv_heads;
  std::vector<AttentionItem> items;
  for (int s = 0; s < a.seqs.count; ++s) {
    const int rows = (a.seqs.query_start[s + 1] - a.seqs.query_start[s]) * group;
    for (int first = 0; first < rows; first += kTileRows)
      for (int head = 0; head < a.kv_heads; ++head)
        items.push_back({s, head, first, std::min(kTileRows, rows - first)});
  }
  const int64_t item_size = int64_t{a.seqs.max_context_len} * a.head_dim;
  for_rows(context, int64_t(items.size()), item_size, [&](int64_t i) {
    HWY_DYNAMIC_DISPATCH(attend_item)(a, items[size_t(i)]);
  });
}

}  // namespace spinfer::cpu
#endif
