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

void check_args(const AttentionArgs& a) {
  check(a.head_dim >= 1 && a.head_dim <= kMaxHeadDim, "attention: head_dim {} must be 1…{}", a.head_dim,
        kMaxHeadDim);
  check(a.block_size >= 1, "attention: block size {} must be positive", a.block_size);
  check(a.kv_heads >= 1 && a.q_heads % a.kv_heads == 0,
        "attention: {} q heads are no multiple of {} kv heads", a.q_heads, a.kv_heads);
}

}  // namespace

AttentionPlan plan_attention(const AttentionArgs& a, bool vectorised) {
  const bool one_token_only = a.seqs.max_query_len == 1;
  const bool no_one_token = a.seqs.count == 1 && a.n > 1;
  const bool paged = std::has_single_bit(unsigned(a.block_size));
  AttentionPlan plan;
  plan.decode = !no_one_token && paged && vectorised && a.head_dim <= kMaxDecodeHeadDim;
  plan.prefill = !one_token_only && paged && vectorised && a.head_dim <= kMaxPrefillHeadDim;
  plan.plain = (!plan.decode && !no_one_token) || (!plan.prefill && !one_token_only);
  if (plan.decode) {
    plan.splits = std::max(1, (a.seqs.max_context_len + kDecodeSplit - 1) / kDecodeSplit);
    if (plan.splits > 1) {
      plan.workspace_bytes = size_t(a.seqs.count) * size_t(plan.splits) * size_t(a.q_heads) *
                             size_t(a.head_dim + 2) * sizeof(float);
    }
  }
  return plan;
}

void attention(DeviceContext& opaque, const AttentionArgs& a) {
  check_args(a);
  if (a.n == 0) return;
  Context& context = context_of(opaque);
  context.activate();
  const uintptr_t bits = reinterpret_cast<uintptr_t>(a.qkv) | reinterpret_cast<uintptr_t>(a.kv.k) |
                         reinterpret_cast<uintptr_t>(a.kv.v) | reinterpret_cast<uintptr_t>(a.out);
  const AttentionPlan plan = plan_attention(a, a.head_dim % 8 == 0 && bits % 16 == 0);
  AttentionTask task{a.qkv,
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
  const int longest = std::min(a.seqs.max_query_len, a.n);
  if (plan.decode) {
    task.min_queries = task.max_queries = 1;
    float* partials =
        plan.workspace_bytes ? static_cast<float*>(context.workspace(plan.workspace_bytes)) : nullptr;
    attention_decode(context, task, a.seqs.count, plan.splits, partials);
  }
  if (plan.prefill) {
    task.min_queries = 2;
    task.max_queries = INT_MAX;
    attention_prefill(context, task, a.seqs.count, longest);
  }
  if (plan.plain) {
    task.min_queries = plan.decode ? 2 : 1;
    task.max_queries = plan.prefill ? 1 : INT_MAX;
    attention_plain(context, task, a.seqs.count, longest);
  }
}

}  // namespace spinfer::cuda
