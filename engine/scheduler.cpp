#include "engine/scheduler.h"

#include <algorithm>
#include <cassert>
#include <span>

#include "kernels/check.h"

namespace spinfer {

Scheduler::Scheduler(const SchedulerOptions& options, KvCache& kv) : options_(options), kv_(kv) {
  check(options.max_num_seqs >= 1, "--max-num-seqs {}: must be at least 1", options.max_num_seqs);
  check(options.max_num_batched_tokens >= 1, "--max-num-batched-tokens {}: must be at least 1",
        options.max_num_batched_tokens);
  options_.max_num_seqs = std::min(options.max_num_seqs, options.max_num_batched_tokens);
  check(options.max_logits >= options_.max_num_seqs, "scheduler: {} rows of logits for {} running requests",
        options.max_logits, options_.max_num_seqs);
}

void Scheduler::add(Sequence sequence) {
  check(sequence.most_cached() <= kv_.capacity_tokens(),
        "request needs up to {} tokens of KV cache (prompt {}, max_tokens {}), the whole cache holds {}",
        sequence.most_cached(), sequence.prompt_size, sequence.params.max_tokens, kv_.capacity_tokens());
  const RequestId id = sequence.id;
  assert(waiting_.empty() || waiting_.back()->id < id);
  assert(running_.empty() || running_.back()->id < id);
  waiting_.push_back(&sequences_.emplace(id, std::move(sequence)).first->second);
}

Decision Scheduler::schedule() {
  Decision decision;
  Budget budget{options_.max_num_batched_tokens, options_.max_logits};
  schedule_decodes(decision, budget);
  for (Sequence* sequence : running_) {
    if (!sequence->decoding()) schedule_prefill(*sequence, decision, budget);
  }
  if (!decision.preempted.empty())
    return decision;  // blocks are short: who was just sent out must not come straight back
  while (!waiting_.empty() && budget.tokens > 0 && running() < options_.max_num_seqs &&
         admit(*waiting_.front())) {
    Sequence& sequence = *waiting_.front();
    waiting_.pop_front();
    running_.push_back(&sequence);
    schedule_prefill(sequence, decision, budget);
  }
  return decision;
}

void Scheduler::schedule_decodes(Decision& decision, Budget& budget) {
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if (!sequence.decoding() || sequence.awaits_last()) continue;
    bool room = kv_.grow(sequence.id, sequence.size());
    while (!room && running_.back() != &sequence) {
      preempt_youngest(decision);
      room = kv_.grow(sequence.id, sequence.size());
    }
    if (!room) return preempt_youngest(decision);  // it is the youngest itself
    decision.work.push_back({&sequence, sequence.computed, 1, true});
    ++decision.decode_tokens;
    --budget.tokens;
    --budget.logits;
  }
}

void Scheduler::schedule_prefill(Sequence& sequence, Decision& decision, Budget& budget) {
  int64_t count = std::min<int64_t>(sequence.remaining(), budget.tokens);
  if (sequence.scoring()) {
    count = std::min<int64_t>(count, budget.logits);
  } else if (count == sequence.remaining() && budget.logits == 0) {
    --count;
  }
  if (count == 0) return;
  const bool samples = count == sequence.remaining();
  decision.work.push_back({&sequence, sequence.computed, int(count), samples});
  decision.prefill_tokens += int(count);
  budget.tokens -= int(count);
  budget.logits -= sequence.scoring() ? int(count) : int(samples);
}

bool Scheduler::admit(Sequence& sequence) {
  if (sequence.pending > 0) return false;  // it was preempted in the step that samples
  // The last token is computed in any case: its logits are wanted. A scoring sequence needs the logits of
  // all.
  const int64_t reusable = sequence.scoring() ? 0 : sequence.size() - 1;
  const int64_t found = kv_.open(sequence.id, std::span(sequence.tokens).first(size_t(reusable)));
  const int64_t missing =
      (sequence.size() + kv_.block_size() - 1) / kv_.block_size() - found / kv_.block_size();
  if (missing + running() > kv_.available() && !running_.empty()) {
    kv_.close(sequence.id);
    return false;
  }
  const bool fits = kv_.grow(sequence.id, sequence.size());
  assert(fits);  // alone it always does: add() saw to that
  (void)fits;
  sequence.computed = found;
  if (!sequence.admitted_before) {
    sequence.admitted_before = true;
    sequence.cached_prompt = found;
    prefix_queried_ += reusable;
    prefix_hit_ += found;
  }
  return true;
}

void Scheduler::preempt_youngest(Decision& decision) {
  Sequence& victim = *running_.back();
  running_.pop_back();
  kv_.close(victim.id);
  victim.computed = 0;
  waiting_.push_front(&victim);
  decision.preempted.push_back(victim.id);
  ++preemptions_;
}

void Scheduler::complete(const Decision& decision) {
  for (const ScheduledTokens& work : decision.work) {
    Sequence& sequence = sequences_.at(work.seq->id);
    sequence.computed = work.start + work.count;
    commit(sequence);
  }
}

/// Names the blocks of computed tokens whose values are known.
void Scheduler::commit(const Sequence& sequence) {
  const int64_t tokens = std::min(sequence.computed, sequence.known());
  kv_.commit(sequence.id, std::span(sequence.tokens).first(size_t(tokens)));
}

void Scheduler::append_pending(RequestId id, int32_t row) {
  Sequence& sequence = sequences_.at(id);
  sequence.tokens.push_back(-1 - row);
  ++sequence.pending;
}

void Scheduler::resolve(RequestId id, int32_t token) {
  Sequence& sequence = sequences_.at(id);
  assert(sequence.pending > 0);
  sequence.tokens[size_t(sequence.known())] = token;
  --sequence.pending;
  if (sequence.has_penalty()) sequence.seen.add(token);
  if (sequence.computed > 0) commit(sequence);  // otherwise it was preempted meanwhile
}

bool Scheduler::may_run_ahead() const {
  return std::none_of(running_.begin(), running_.end(),
                      [](const Sequence* s) { return s->pending > 0 && s->has_penalty(); });
}

void Scheduler::remove(RequestId id) {
  const auto entry = sequences_.find(id);
  if (entry == sequences_.end()) return;
  Sequence* sequence = &entry->second;
  if (std::erase(running_, sequence)) {
    kv_.close(id);
  } else {
    std::erase(waiting_, sequence);
  }
  sequences_.erase(entry);
}

const Sequence* Scheduler::find(RequestId id) const {
  const auto entry = sequences_.find(id);
  return entry == sequences_.end() ? nullptr : &entry->second;
}

}  // namespace spinfer
