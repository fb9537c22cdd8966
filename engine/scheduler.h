// Who runs in the next step, and with how many tokens. Continuous batching over the paged KV cache: pure host
// code, deterministic, without a clock.
//
// A step takes, under the token budget, in this order:
//   1. one token of every running request that decodes;
//   2. the next chunk of running requests whose prompt is not done, oldest first;
//   3. waiting requests, first come first served: the head is admitted when the cache has blocks for all its
//      tokens and one more for each running request (so that admission does not cause preemption at once);
//      nobody overtakes it.
// When a decoding request finds no block, the youngest running request gives up its blocks, returns to the
// head of the queue, and later recomputes. So every running request is older than every waiting one, the
// oldest always advances, and all end.
#pragma once

#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

#include "engine/kv_cache.h"
#include "engine/sequence.h"

namespace spinfer {

struct SchedulerOptions {
  int max_num_seqs = 256;             ///< running at the same time, ≥ 1
  int max_num_batched_tokens = 8192;  ///< in one step, ≥ 1; also bounds the running requests
  int max_logits = 8192;              ///< rows of logits in one step, at least the smaller of the two above
};

/// Tokens [start, start + count) of a sequence, to be computed in this step.
struct ScheduledTokens {
  const Sequence* seq;
  int64_t start;
  int count;
  bool samples;  ///< they reach the end of the sequence: a next token is sampled
};

struct Decision {
  std::vector<ScheduledTokens> work = {};  ///< decoding sequences first
  int decode_tokens = 0;
  int prefill_tokens = 0;
  std::vector<RequestId> preempted = {};
};

class Scheduler {
 public:
  /// `kv` must outlive the scheduler. Throws `Error` if a number is out of its range.
  Scheduler(const SchedulerOptions& options, KvCache& kv);

  /// Queues a sequence; ids must come in increasing order. Throws `Error` if it can never fit the cache.
  void add(Sequence sequence);
  Decision schedule();
  /// The tokens of `decision` were computed, or will be before any later step. Call before tokens are
  /// appended or sequences removed.
  void complete(const Decision& decision);
  void append(RequestId id, int32_t token) { sequences_.at(id).append(token); }
  /// The next token is what row `row` of the step just queued samples. Its place is held by -1-row, which the
  /// next step's embedding understands; `resolve` gives the oldest such token of the sequence its value.
  void append_pending(RequestId id, int32_t row);
  void resolve(RequestId id, int32_t token);
  /// Whether a step may be scheduled while tokens are pending: a repetition penalty must know them all.
  bool may_run_ahead() const;
  /// Forgets a sequence, waiting or running, and frees its blocks. Unknown ids are ignored.
  void remove(RequestId id);

  const Sequence* find(RequestId id) const;
  bool has_work() const { return !sequences_.empty(); }
  int running() const { return int(running_.size()); }
  int waiting() const { return int(waiting_.size()); }
  int64_t preemptions() const { return preemptions_; }
  /// Prompt tokens looked up in the prefix cache, and those found there.
  int64_t prefix_queried_tokens() const { return prefix_queried_; }
  int64_t prefix_hit_tokens() const { return prefix_hit_; }

 private:
  struct Budget {
    int tokens;
    int logits;
  };
  void schedule_decodes(Decision& decision, Budget& budget);
  void schedule_prefill(Sequence& sequence, Decision& decision, Budget& budget);
  bool admit(Sequence& sequence);
  void preempt_youngest(Decision& decision);
  void commit(const Sequence& sequence);

  SchedulerOptions options_;
  KvCache& kv_;
  // Owns all sequences; each is in exactly one of the lists, which are in order of arrival. All of running_
  // arrived before all of waiting_; running_ ones, and only they, have a table in kv_.
  std::unordered_map<RequestId, Sequence> sequences_;
  std::vector<Sequence*> running_;
  std::deque<Sequence*> waiting_;
  int64_t preemptions_ = 0;
  int64_t prefix_queried_ = 0;
  int64_t prefix_hit_ = 0;
};

}  // namespace spinfer
