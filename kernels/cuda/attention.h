// The three attention kernels and who runs what.
//
//   decode   sequences with one new token; the context split over blocks          head_dim % 8 = 0, ≤ 256
//   prefill  sequences with several new tokens; tensor cores                      head_dim % 8 = 0, ≤ 128
//   plain    what the others refuse: any head_dim ≤ 512, any block size           one warp a query head
//
// Which kernel serves a sequence depends on the sequence's own number of new tokens and on the model's shape
// alone, and each kernel's sums have one order given by the position, so a token's result does not depend on
// the batch. A prompt chunk of one token goes to `decode`, which keeps softmax weights in fp32 where
// `prefill` rounds them to fp16: there the last bits differ from the same token inside a longer chunk.
#pragma once

#include "kernels/cuda/context.h"
#include "kernels/ops.h"

namespace spinfer::cuda {

inline constexpr int kMaxHeadDim = 512;

/// Tokens of context one decode block reads: fixed, so that a result never depends on the batch.
inline constexpr int kDecodeSplit = 256;

struct AttentionPlan {
  bool plain = false;  ///< run the plain kernel for the sequences the others leave
  bool decode = false;
  bool prefill = false;
  int splits = 1;              ///< decode blocks the longest context takes
  size_t workspace_bytes = 0;  ///< partial results of decode, where splits > 1
};
/// Pure: what to launch. `vectorised` is whether q, k, v and out can be read 16 bytes at a time.
AttentionPlan plan_attention(const AttentionArgs& args, bool vectorised);

/// By value into kernels: AttentionArgs with device types.
struct AttentionTask {
  const void* q;  ///< [n][q_heads + 2·kv_heads][head_dim] halves
  const void* k;
  const void* v;
  void* out;
  const int32_t* query_start;
  const int32_t* context_len;
  const int32_t* block_table;
  int max_blocks, q_heads, kv_heads, head_dim, block_size, block_shift;
  float scale;
  int min_queries, max_queries;  ///< sequences with another number of new tokens are left alone
};

void attention_decode(Context& context, const AttentionTask& task, int sequences, int splits,
                      float* partials);
void attention_prefill(Context& context, const AttentionTask& task, int sequences, int max_query_len);
void attention_plain(Context& context, const AttentionTask& task, int sequences, int max_query_len);

}  // namespace spinfer::cuda
