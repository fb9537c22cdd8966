// The attention kernels and who runs what.
//
//   decode          sequences with one new token; the context split over blocks     head_dim % 8 = 0, ≤ 256
//   prefill         sequences with several new tokens; mma.sync                     head_dim % 8 = 0, ≤ 128
//   prefill_hopper  the same on sm_90a; wgmma                                       head_dim % 8 = 0, ≤ 128
//   plain           what the others refuse: any head_dim ≤ 512, any block size      one warp a query head
//
// With DeviceOptions::deterministic a token's result depends on its sequence alone: prefill serves all
// chunks, and its sums have one order given by the position. Without, two things may change last bits: a
// chunk of one token goes to decode, one of several to prefill, and decode cuts contexts into more parts
// where few sequences run.
#pragma once

#include "kernels/cuda/context.h"
#include "kernels/ops.h"

namespace spinfer::cuda {

inline constexpr int kMaxHeadDim = 512;

/// Keys a decode block takes at once.
inline constexpr int kDecodeKeys = 64;
/// The largest cluster of Hopper.
inline constexpr int kMaxDecodeParts = 16;

/// Blocks that share a context in decode, a cluster: a power of two, at most kMaxDecodeParts, for `pairs` of
/// (sequence, kv head). `max_context` may be a bound: a part without keys costs little.
int decode_parts(const GpuFacts& facts, int64_t pairs, int max_context);

struct AttentionPlan {
  bool append = false;  ///< decode rotates and stores the newest tokens itself
  bool plain = false;   ///< run the plain kernel for the sequences the others leave
  bool decode = false;
  bool prefill = false;
};
/// Pure: what to launch. `vectorised` is whether q, k, v and out can be read 16 bytes at a time;
/// `shared_per_block` what a block may have of shared memory.
AttentionPlan plan_attention(const AttentionArgs& args, bool vectorised, bool deterministic,
                             int shared_per_block);

/// Shared memory of a block of attention_decode (head_dim ≤ 256) and of attention_prefill (≤ 128).
int decode_shared_bytes(int head_dim);
int prefill_shared_bytes(int head_dim);

/// By value into kernels: AttentionArgs with device types.
struct AttentionTask {
  const void* q;  ///< [n][q_heads + 2·kv_heads][head_dim] halves
  void* k;
  void* v;
  void* out;
  const int32_t* query_start;
  const int32_t* context_len;
  const int32_t* block_table;
  int max_blocks, q_heads, kv_heads, head_dim, block_size, block_shift;
  float scale;
  int min_queries, max_queries;  ///< sequences with another number of new tokens are left alone
};

/// All sequences of the arguments.
AttentionTask attention_task(const AttentionArgs& args);

/// What decode does with the newest tokens in the same pass (RopeAppendArgs); the cache is the task's.
struct DecodeAppend {
  const int32_t* positions = nullptr;  ///< null: nothing
  const int32_t* slots = nullptr;
  const float* inv_freq = nullptr;
};
void attention_decode(Context& context, const AttentionTask& task, const DecodeAppend& append, int sequences,
                      int max_context);
void attention_prefill(Context& context, const AttentionTask& task, int sequences, int max_query_len);
/// `n`: tokens of the batch.
void attention_prefill_hopper(Context& context, const AttentionTask& task, int sequences, int max_query_len,
                              int n);
void attention_plain(Context& context, const AttentionTask& task, int sequences, int max_query_len);

}  // namespace spinfer::cuda
