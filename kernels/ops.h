// The op contract: every operation a forward pass consists of, with shapes, types, rounding and accumulation.
//
// Activations are fp16 and token-major: x[n][k] is n tokens of k features. All accumulation is fp32, norms,
// softmax and rotary angles are computed in fp32; a result is rounded to fp16 once, when it is stored
// (nearest even). Pointers are device pointers of the backend that runs the op; scalars and structs live on
// the host. Outputs never alias inputs unless said. n = 0 is legal and does nothing. Ops are queued in the
// order of the calls; results are visible to the host after Backend::synchronize or download.
#pragma once

#include <cstdint>

#include "kernels/half.h"
#include "kernels/weights.h"

namespace spinfer {

enum class Activation { none, relu, gelu, gelu_tanh, silu };  ///< gelu is the erf form
enum class NormKind { rms, layer };

/// out[i] (+)= table[ids[i] + id_offset]. Token embedding, and OPT's learned positions (ids = positions,
/// offset 2). An id that the host does not know yet, because the step before samples it, is written -1-i: it
/// stands for newest[i], and for row 0 where that is kNoToken.
struct EmbedArgs {
  const int32_t* ids;               ///< [n]
  const int32_t* newest = nullptr;  ///< ids the step before has sampled; null: no id is negative
  int32_t id_offset = 0;
  const Half* table;  ///< [rows][d]
  int64_t rows;
  int n;
  int d;
  bool accumulate = false;  ///< add to out (fp32 add, one rounding) instead of writing it
  Half* out;                ///< [n][d]
};

/// h += delta, summed over the ranks before where it says so (rounded to fp16: the residual stream), then out
/// = norm(h)·gain + bias. Statistics from the rounded h.
struct AddNormArgs {
  Half* h;      ///< [n][d], updated where delta is given
  Half* delta;  ///< [n][d], or null
  NormKind kind;
  const Half* gain;  ///< [d]; null = 1
  const Half* bias;  ///< [d], or null
  float eps;
  int n;
  int d;
  Half* out;  ///< [n][d]; may be h itself (post-norm), or null: only the addition
  /// delta is this rank's part of a sum over the ranks, taken as by all_reduce; what it holds afterwards is
  /// unspecified. Every rank of the group calls it.
  bool sum_delta = false;
};

/// A norm that costs no pass of its own, as it nearly commutes with a product. The linear that makes h
/// (LinearArgs::norm_of_y) also stores x = h·gain/bound and takes the moments of each row of h; the linear
/// that reads x (norm_of_x) scales its sums by what the moments say: W·norm(h) = (bound · W·x − mean ·
/// W·gain) / deviation + W·bias, where an RMS norm has no mean and no bias. Only where Backend::defers_norm
/// says so.
struct DeferredNorm {
  NormKind kind;
  const Half* gain;  ///< [d]
  float bound;       ///< x is h·gain/bound; at least each |gain|, so that x fits where h does
  float eps;
  Half* x;  ///< [n][d]
  /// Zero before: [kMomentParts][n] a row's sum of squares and, for a layer norm, behind it another such
  /// array for its sum: in parts, so that not all are added to one word, and in units of
  /// 2^-kMomentFractionBits, so that no order matters.
  uint64_t* moments;
  /// Of the reader, for a layer norm: W·gain and W·bias + b, [its m] each. Null for an RMS norm, which leaves
  /// the reader its bias.
  const float* gain_product = nullptr;
  const float* bias_product = nullptr;
};
inline constexpr int kMomentParts = 8;
inline constexpr int kMomentFractionBits = 20;
inline constexpr int kMostDeferringFeatures = 16384;  ///< d; so many moments cannot overflow, whatever h is
inline constexpr int kMostDeferringTokens = 96;       ///< of more no backend defers the norm
constexpr int64_t moment_words(NormKind kind, int n) {
  return int64_t{kind == NormKind::layer ? 2 : 1} * kMomentParts * n;
}

/// y = act(W·x + b) + residual.
struct LinearArgs {
  const Linear& w;
  const Half* x;  ///< [n][w.k]
  int n;
  Activation act = Activation::none;
  const Half* residual = nullptr;           ///< [n][w.m], or null; may be y
  Half* y;                                  ///< [n][w.m]
  const DeferredNorm* norm_of_x = nullptr;  ///< W·x is to be divided by what this norm has left
  const DeferredNorm* norm_of_y = nullptr;  ///< y is the h of this norm
};

/// y = act(W₁·x + b₁) · (W₂·x + b₂), W₁ the first half of w's rows (gate), W₂ the second (up). `w` was
/// prepared as gated.
struct GatedLinearArgs {
  const Linear& w;
  const Half* x;  ///< [n][w.k]
  int n;
  Activation act;
  Half* gate_up;                            ///< scratch [n][w.m]
  Half* y;                                  ///< [n][w.m/2]
  const DeferredNorm* norm_of_x = nullptr;  ///< see LinearArgs
};

/// Keys and values of one layer in the paged cache.
struct KvLayer {
  Half* k;  ///< [blocks][kv_heads][block_size][head_dim]
  Half* v;  ///< [blocks][kv_heads][block_size][head_dim]
};

/// Rotates q and k of each token in place (pairs i, i + head_dim/2, as Hugging Face does) and stores k and v
/// in the cache.
struct RopeAppendArgs {
  Half* qkv;                 ///< [n][(q_heads + 2·kv_heads)·head_dim]: q heads, k heads, v heads
  const int32_t* positions;  ///< [n]
  const int32_t* slots;   ///< [n], block · block_size + offset in the block; < 0: not stored (graph padding)
  const float* inv_freq;  ///< [head_dim/2] radians per position, scaling included; null: no rotation
  int n;
  int q_heads;
  int kv_heads;
  int head_dim;
  int block_size;
  KvLayer kv;
};

/// Which tokens belong to which sequence. Token rows of a batch are grouped by sequence: sequence s owns rows
/// [query_start[s], query_start[s+1]), which are its newest tokens; its cache holds context_len[s] tokens,
/// these included.
/// The arrays, positions and slots as well, and the cache of earlier tokens are in place before the first op
/// of a step is queued (`upload`, earlier steps): an op may read them while the op before it still runs.
struct SequenceBatch {
  int count = 0;                         ///< sequences
  const int32_t* query_start = nullptr;  ///< [count + 1]
  const int32_t* context_len = nullptr;  ///< [count]
  const int32_t* block_table = nullptr;  ///< [count][max_blocks]: entry i has tokens block_size · i …
  int max_blocks = 0;
  int max_query_len = 0;  ///< host copies of the maxima, for choosing a launch
  int max_context_len = 0;
};

/// Causal attention of each new token over its sequence's cache. GQA: q head h reads kv head h / (q_heads /
/// kv_heads).
struct AttentionArgs {
  const Half* qkv;  ///< [n][(q_heads + 2·kv_heads)·head_dim]; only q is read, k and v come from the cache
  /// Null, or what is to be done first, for the same tokens, qkv and cache: in one pass where that saves one.
  /// Whether qkv holds the rotated values afterwards is left open.
  const RopeAppendArgs* append = nullptr;
  SequenceBatch seqs;
  KvLayer kv;
  int n;
  int q_heads;
  int kv_heads;
  int head_dim;
  int block_size;
  float scale;  ///< multiplies q·k
  Half* out;    ///< [n][q_heads·head_dim]
};

/// out = act(gate) · up.
struct GatedActivationArgs {
  const Half* gate_up;  ///< [n][2·f]: gate, then up
  int n;
  int f;
  Activation act;
  Half* out;  ///< [n][f]
};

/// out[i] = src[rows[i]].
struct GatherRowsArgs {
  const Half* src;      ///< [..][d]
  const int32_t* rows;  ///< [n]
  int n;
  int d;
  Half* out;  ///< [n][d]
};

/// logits = W·x + b, fp32 result not rounded to fp16.
struct LogitsArgs {
  const Linear& w;
  const Half* x;  ///< [n][w.k]
  int n;
  float* logits;  ///< [n][w.m]
};

/// The id of a row whose logits are unusable.
inline constexpr int32_t kNoToken = -1;

/// Added to a token's logit.
struct TokenBias {
  int32_t id;
  float bias;
};

/// How one row is sampled. Order: biases → repetition penalty → temperature → top-k → top-p → min-p → draw.
/// The draw is a function of (seed, step) alone, so it does not depend on what else is in the batch.
/// In full, with l the biased and penalised logits: w[i] = exp((l[i] - max l) / temperature). top-k keeps the
/// k largest l (lower id first among equals). top-p walks those from the largest (lower id first among
/// equals) and keeps the shortest prefix whose sum of w reaches top_p · the sum of all w that top-k kept.
/// min-p then keeps w ≥ min_p; the largest always stays. The draw walks the kept tokens by ascending id and
/// takes the first whose running sum of w exceeds sample_uniform(seed, step) · the sum over all kept. A row
/// with NaN or +infinity, or without any finite logit, cannot be sampled: its id is kNoToken, and only its
/// request suffers.
struct SampleRow {
  float temperature = 0;     ///< 0: greedy (lowest id wins a tie)
  int32_t top_k = 0;         ///< 0: off
  float top_p = 1;           ///< smallest set of most probable tokens whose mass reaches top_p
  float min_p = 0;           ///< drop tokens below min_p · the largest probability
  float repeat_penalty = 1;  ///< logits of seen tokens: divided if positive, multiplied if negative
  int32_t seen_begin = 0;    ///< the row's distinct earlier tokens: SampleArgs::seen[seen_begin, seen_end)
  int32_t seen_end = 0;
  int32_t bias_begin = 0;  ///< of distinct tokens: SampleArgs::biases[bias_begin, bias_end)
  int32_t bias_end = 0;
  uint32_t step = 0;  ///< index of the token in its output
  uint64_t seed = 0;
};

struct SampleArgs {
  const float* logits;  ///< [n][vocab]; not changed
  int n;
  int vocab;
  const SampleRow* rows;              ///< [n]
  const int32_t* seen;                ///< see SampleRow; null if no row has a penalty
  int32_t* ids;                       ///< out [n]
  const TokenBias* biases = nullptr;  ///< see SampleRow; null if no row has any
};

/// Natural-log probabilities under softmax(logits), before biases, penalties and temperature. A row that
/// cannot be sampled (see SampleRow) gets NaN for all of them, and the ids 0, 1, ….
struct LogprobsArgs {
  const float* logits;  ///< [n][vocab]
  int n;
  int vocab;
  const int32_t* targets;  ///< [n]; < 0: skipped, 0 is written. null: none
  float* target_logprobs;  ///< out [n], or null
  int top = 0;             ///< how many of the most probable to list; lower id first among equals
  int32_t* top_ids;        ///< out [n][top], best first; null if top = 0
  float* top_logprobs;     ///< out [n][top]
};

/// Random weights: out[r][c] = values[top 14 bits of h], or 0 where the low 32 bits of h are less than
/// zero_below, with h = random_bits(key, (first_row + r) · k + first_col + c). A slice of a matrix is thus
/// the same on every rank and backend.
struct FillRandomArgs {
  Half* out;  ///< [rows][cols]
  int64_t rows, cols;
  int64_t k;  ///< columns of the whole matrix
  int64_t first_row, first_col;
  uint64_t key;
  uint64_t zero_below;  ///< of 2^32
  const Half* values;   ///< [2^kRandomValueBits]
};
inline constexpr int kRandomValueBits = 14;

/// SplitMix64 of (key, index).
constexpr uint64_t random_bits(uint64_t key, uint64_t index) {
  uint64_t z = key + index * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

/// The uniform draw in [0, 1) that sampling uses: the same on every backend.
constexpr float sample_uniform(uint64_t seed, uint32_t step) {
  return float(random_bits(seed, uint64_t{step} + 1) >> 40) * 0x1p-24f;
}

}  // namespace spinfer
