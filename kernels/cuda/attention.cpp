#include "kernels/cuda/attention.h"

#include <algorithm>
#include <bit>
#include <climits>

#include "kernels/check.h"
#include "kernels/cuda/ops.h"

namespace spinfer::cuda {
namespace {

constexpr int kMaxDecodeHeadDim = 256;
constexpr int kMaxPrefillHeadDim = 128;
constexpr int kMinBlockSize = 16;  // keys a tensor-core product takes from one cache block

/// Whether the wgmma kernels were compiled and this GPU has them.
bool has_wgmma(const Context& context) {
#ifdef SPINFER_SM90A
  return context.facts().compute_capability == 90;
#else
  return context.facts().compute_capability < 0;
#endif
}

void check_args(const AttentionArgs& a) {
  check(a.head_dim >= 1 && a.head_dim <= kMaxHeadDim, "attention: head_dim {} must be 1…{}", a.head_dim,
        kMaxHeadDim);
  check(a.block_size >= 1, "attention: block size {} must be positive", a.block_size);
  check(a.kv_heads >= 1 && a.q_heads % a.kv_heads == 0,
        "attention: {} q heads are no multiple of {} kv heads", a.q_heads, a.kv_heads);
}

}  // namespace

AttentionPlan plan_attention(const AttentionArgs& a, bool vectorised, bool deterministic,
                             int shared_per_block) {
  const bool one_token_only = a.seqs.max_query_len == 1;
  const bool no_one_token = a.seqs.count == 1 && a.n > 1;
  const bool fast =
      vectorised && std::has_single_bit(unsigned(a.block_size)) && a.block_size >= kMinBlockSize;
  const bool decode_fits =
      fast && a.head_dim <= kMaxDecodeHeadDim && decode_shared_bytes(a.head_dim) <= shared_per_block;
  const bool prefill_fits =
      fast && a.head_dim <= kMaxPrefillHeadDim && prefill_shared_bytes(a.head_dim) <= shared_per_block;
  AttentionPlan plan;
  if (deterministic) {
    plan.prefill = prefill_fits;
    plan.plain = !plan.prefill;
    return plan;
  }
  plan.decode = !no_one_token && decode_fits;
  plan.prefill = !one_token_only && prefill_fits;
  plan.plain = (!plan.decode && !no_one_token) || (!plan.prefill && !one_token_only);
  plan.append = a.append && plan.decode && one_token_only && a.head_dim % 16 == 0;
  return plan;
}

AttentionTask attention_task(const AttentionArgs& a) {
  return {a.qkv,
          a.kv.k,
          a.kv.v,
          a.out,
          a.seqs.query_start,
          a.seqs.context_len,
          a.seqs.block_table,
          a.seqs.max_blocks,
          a.q_heads,
          a.kv_heads,
          a.head_dim,
          a.block_size,
          std::countr_zero(unsigned(a.block_size)),
          a.scale,
          1,
          INT_MAX};
}

int decode_parts(const GpuFacts& facts, int64_t pairs, int max_context) {
  if (facts.compute_capability < 90) return 1;
  // Where each part has some hundred keys, twice as many blocks as fit at once even the load out; where it
  // has few, a second round of them doubles the time.
  const int64_t blocks = int64_t{facts.sm_count} * (max_context >= 4096 ? 8 : 4);
  int parts = 1;
  while (parts < kMaxDecodeParts && 2 * parts * pairs <= blocks && parts * kDecodeKeys < max_context)
    parts *= 2;
  return parts;
}

void attention(DeviceContext& opaque, const AttentionArgs& a) {
  check_args(a);
  if (a.n == 0) return;
  Context& context = context_of(opaque);
  context.activate();
  const uintptr_t bits = reinterpret_cast<uintptr_t>(a.qkv) | reinterpret_cast<uintptr_t>(a.kv.k) |
                         reinterpret_cast<uintptr_t>(a.kv.v) | reinterpret_cast<uintptr_t>(a.out);
  const AttentionPlan plan = plan_attention(a, a.head_dim % 8 == 0 && bits % 16 == 0, context.deterministic(),
                                            context.facts().shared_per_block);
  if (a.append && !plan.append) rope_append(opaque, *a.append);
  AttentionTask task = attention_task(a);
  const int longest = std::min(a.seqs.max_query_len, a.n);
  if (plan.decode) {
    DecodeAppend append;
    if (plan.append) append = {a.append->positions, a.append->slots, a.append->inv_freq};
    attention_decode(context, task, append, a.seqs.count, a.seqs.max_context_len);
  }
  if (plan.prefill) {
    task.min_queries = plan.decode ? 2 : 1;
    if (has_wgmma(context)) {
      attention_prefill_hopper(context, task, a.seqs.count, longest, a.n);
    } else {
      attention_prefill(context, task, a.seqs.count, longest);
    }
  }
  if (plan.plain) {
    task.min_queries = plan.decode ? 2 : 1;
    task.max_queries = plan.prefill ? 1 : INT_MAX;
    attention_plain(context, task, a.seqs.count, longest);
  }
}

}  // namespace spinfer::cuda
