#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/check.h"

namespace spinfer {
namespace {

Sequence make_sequence(RequestId id, int prompt, int max_tokens, bool score = false) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < prompt; ++i) tokens.push_back(int32_t(100 * id) + i);
  return Sequence(id, tokens, {.max_tokens = max_tokens, .prompt_logprobs = score}, id);
}

struct Work {
  RequestId id;
  int64_t start;
  int count;
  bool samples;
  friend bool operator==(const Work&, const Work&) = default;
  friend std::ostream& operator<<(std::ostream& out, const Work& w) {
    return out << w.id << ":[" << w.start << "+" << w.count << (w.samples ? " samples]" : "]");
  }
};

enum class Sampled { known, pending };

/// Schedules and completes one step; every sampled token is 7, or stays pending.
std::vector<Work> step(Scheduler& scheduler, const KvCache& kv, Sampled sampled = Sampled::known) {
  const Decision decision = scheduler.schedule();
  scheduler.complete(decision);
  std::vector<Work> work;
  int32_t row = 0;
  for (const auto& w : decision.work) {
    work.push_back({w.seq->id, w.start, w.count, w.samples});
    if (!w.samples) continue;
    sampled == Sampled::known ? scheduler.append(w.seq->id, 7) : scheduler.append_pending(w.seq->id, row++);
  }
  kv.check_integrity();
  return work;
}

/// A step whose tokens are not known yet.
std::vector<Work> queue(Scheduler& scheduler, const KvCache& kv) {
  return step(scheduler, kv, Sampled::pending);
}

using Works = std::vector<Work>;
using Tokens = std::vector<int32_t>;

TEST(Scheduler, PrefillsInChunksAndDecodesFirst) {
  KvCache kv(64, 4, false);
  Scheduler scheduler({.max_num_seqs = 4, .max_num_batched_tokens = 8}, kv);
  scheduler.add(make_sequence(1, 5, 10));
  scheduler.add(make_sequence(2, 12, 10));
  EXPECT_EQ(step(scheduler, kv), (Works{{1, 0, 5, true}, {2, 0, 3, false}}));
  EXPECT_EQ(step(scheduler, kv), (Works{{1, 5, 1, true}, {2, 3, 7, false}}));
  scheduler.add(make_sequence(3, 2, 10));
  EXPECT_EQ(step(scheduler, kv), (Works{{1, 6, 1, true}, {2, 10, 2, true}, {3, 0, 2, true}}));
  EXPECT_EQ(step(scheduler, kv), (Works{{1, 7, 1, true}, {2, 12, 1, true}, {3, 2, 1, true}}));
}

TEST(Scheduler, RespectsMaxNumSeqsInOrderOfArrival) {
  KvCache kv(64, 4, false);
  Scheduler scheduler({.max_num_seqs = 2, .max_num_batched_tokens = 64}, kv);
  for (RequestId id = 1; id <= 4; ++id) scheduler.add(make_sequence(id, 3, 10));
  EXPECT_EQ(step(scheduler, kv), (Works{{1, 0, 3, true}, {2, 0, 3, true}}));
  EXPECT_EQ(scheduler.waiting(), 2);
  scheduler.remove(1);
  EXPECT_EQ(step(scheduler, kv), (Works{{2, 3, 1, true}, {3, 0, 3, true}}));
}

TEST(Scheduler, NobodyOvertakesAHeadThatDoesNotFitYet) {
  KvCache kv(6, 4, false);
  Scheduler scheduler({.max_num_seqs = 8, .max_num_batched_tokens = 64}, kv);
  scheduler.add(make_sequence(1, 12, 4));  // 3 blocks
  scheduler.add(make_sequence(2, 16, 4));  // 4: does not fit beside it
  scheduler.add(make_sequence(3, 1, 4));   // would
  EXPECT_EQ(step(scheduler, kv), (Works{{1, 0, 12, true}}));
  EXPECT_EQ(step(scheduler, kv), (Works{{1, 12, 1, true}}));
  scheduler.remove(1);
  EXPECT_EQ(step(scheduler, kv), (Works{{2, 0, 16, true}, {3, 0, 1, true}}));
}

TEST(Scheduler, PreemptsTheYoungestAndRecomputesIt) {
  KvCache kv(5, 4, false);
  Scheduler scheduler({.max_num_seqs = 8, .max_num_batched_tokens = 64}, kv);
  scheduler.add(make_sequence(1, 7, 13));
  scheduler.add(make_sequence(2, 7, 13));
  EXPECT_EQ(step(scheduler, kv), (Works{{1, 0, 7, true}, {2, 0, 7, true}}));
  EXPECT_EQ(step(scheduler, kv),
            (Works{{1, 7, 1, true}, {2, 7, 1, true}}));      // both fill two blocks, one is left
  EXPECT_EQ(step(scheduler, kv), (Works{{1, 8, 1, true}}));  // takes it; 2 is the youngest and goes
  EXPECT_EQ(scheduler.preemptions(), 1);
  EXPECT_EQ(scheduler.waiting(), 1);
  EXPECT_EQ(step(scheduler, kv), (Works{{1, 9, 1, true}}));  // 2 needs three blocks, two are free
  scheduler.remove(1);
  EXPECT_EQ(step(scheduler, kv), (Works{{2, 0, 9, true}}));  // its prompt and the two tokens it had
  EXPECT_EQ(scheduler.find(2)->output_size(), 3);
}

TEST(Scheduler, RejectsWhatCanNeverFitWithTheNumbers) {
  KvCache kv(4, 4, false);
  Scheduler scheduler({.max_num_seqs = 8, .max_num_batched_tokens = 64}, kv);
  EXPECT_NO_THROW(scheduler.add(make_sequence(1, 10, 7)));  // 16 tokens: the seventh new one is never cached
  try {
    scheduler.add(make_sequence(2, 10, 8));
    FAIL() << "accepted";
  } catch (const Error& e) {
    const std::string message = e.what();
    for (const char* number : {"17 tokens", "prompt 10", "max_tokens 8", "holds 16"}) {
      EXPECT_NE(message.find(number), std::string::npos) << message;
    }
  }
  EXPECT_EQ(scheduler.waiting(), 1);
}

TEST(Scheduler, RemoveFreesWaitingAndRunning) {
  KvCache kv(8, 4, false);
  Scheduler scheduler({.max_num_seqs = 1, .max_num_batched_tokens = 2}, kv);
  scheduler.add(make_sequence(1, 8, 4));
  scheduler.add(make_sequence(2, 8, 4));
  EXPECT_EQ(step(scheduler, kv), (Works{{1, 0, 2, false}}));
  scheduler.remove(2);
  scheduler.remove(1);
  scheduler.remove(99);
  EXPECT_FALSE(scheduler.has_work());
  EXPECT_EQ(kv.counts().free, 8);
  EXPECT_TRUE(scheduler.schedule().work.empty());
}

TEST(Scheduler, PromptScoringIsBoundByTheLogitsRows) {
  KvCache kv(64, 4, true);
  Scheduler scheduler({.max_num_seqs = 3, .max_num_batched_tokens = 16, .max_logits = 5}, kv);
  scheduler.add(make_sequence(1, 12, 0, true));
  scheduler.add(make_sequence(2, 6, 2));
  EXPECT_EQ(step(scheduler, kv),
            (Works{{1, 0, 5, false}, {2, 0, 5, false}}));  // no row left for 2's last token
  EXPECT_EQ(step(scheduler, kv), (Works{{1, 5, 5, false}}));
  EXPECT_EQ(step(scheduler, kv), (Works{{1, 10, 2, true}, {2, 5, 1, true}}));
}

TEST(Scheduler, PrefixHitsSkipComputedBlocksButNeverTheLastToken) {
  KvCache kv(64, 4, true);
  Scheduler scheduler({.max_num_seqs = 4, .max_num_batched_tokens = 64}, kv);
  const std::vector<int32_t> prompt = {1, 2, 3, 4, 5, 6, 7, 8};
  scheduler.add(Sequence(1, prompt, {.max_tokens = 4}, 0));
  EXPECT_EQ(step(scheduler, kv), (Works{{1, 0, 8, true}}));
  scheduler.add(Sequence(2, prompt, {.max_tokens = 4}, 0));
  scheduler.add(Sequence(3, prompt, {.max_tokens = 0, .prompt_logprobs = true}, 0));  // wants all logits
  EXPECT_EQ(step(scheduler, kv), (Works{{1, 8, 1, true}, {2, 4, 4, true}, {3, 0, 8, true}}));
  EXPECT_EQ(scheduler.find(2)->cached_prompt, 4);
  EXPECT_EQ(scheduler.prefix_queried_tokens(), 7 + 7);
  EXPECT_EQ(scheduler.prefix_hit_tokens(), 4);
}

TEST(Scheduler, PendingTokensAreDecodedAndResolvedOldestFirst) {
  KvCache kv(64, 4, false);
  Scheduler scheduler({.max_num_seqs = 4, .max_num_batched_tokens = 64}, kv);
  scheduler.add(make_sequence(1, 2, 10));
  scheduler.add(make_sequence(2, 3, 10));
  EXPECT_EQ(queue(scheduler, kv), (Works{{1, 0, 2, true}, {2, 0, 3, true}}));
  EXPECT_EQ(scheduler.find(1)->tokens, (Tokens{100, 101, -1}));
  EXPECT_EQ(scheduler.find(2)->tokens, (Tokens{200, 201, 202, -2}));  // row 1 of the step
  EXPECT_EQ(queue(scheduler, kv), (Works{{1, 2, 1, true}, {2, 3, 1, true}}));
  scheduler.resolve(2, 40);
  EXPECT_EQ(scheduler.find(2)->tokens, (Tokens{200, 201, 202, 40, -2}));
  EXPECT_EQ(scheduler.find(2)->known(), 4);
  scheduler.resolve(2, 41);
  EXPECT_EQ(scheduler.find(2)->tokens, (Tokens{200, 201, 202, 40, 41}));
  EXPECT_EQ(scheduler.find(2)->pending, 0);
  EXPECT_EQ(scheduler.find(1)->tokens, (Tokens{100, 101, -1, -1}));
}

TEST(Scheduler, TheLastTokenIsNotScheduledWhileItIsPending) {
  KvCache kv(3, 4, false);
  Scheduler scheduler({.max_num_seqs = 4, .max_num_batched_tokens = 64}, kv);
  scheduler.add(make_sequence(1, 7, 2));        // two blocks, full when the last token is sampled
  scheduler.add(make_sequence(2, 3, 0, true));  // wants no token at all
  EXPECT_EQ(queue(scheduler, kv), (Works{{1, 0, 7, true}}));  // the third block is kept for it to grow
  EXPECT_EQ(queue(scheduler, kv), (Works{{1, 7, 1, true}}));
  scheduler.resolve(1, 40);
  EXPECT_EQ(queue(scheduler, kv), (Works{}));
  scheduler.remove(1);
  EXPECT_EQ(queue(scheduler, kv), (Works{{2, 0, 3, true}}));
  EXPECT_EQ(queue(scheduler, kv), (Works{}));
  EXPECT_EQ(scheduler.preemptions(), 0);
}

TEST(Scheduler, PreemptedWithAPendingTokenItWaitsForTheValue) {
  KvCache kv(5, 4, true);
  Scheduler scheduler({.max_num_seqs = 8, .max_num_batched_tokens = 64}, kv);
  scheduler.add(make_sequence(1, 7, 13));
  scheduler.add(make_sequence(2, 7, 13));
  EXPECT_EQ(queue(scheduler, kv), (Works{{1, 0, 7, true}, {2, 0, 7, true}}));
  EXPECT_EQ(queue(scheduler, kv), (Works{{1, 7, 1, true}, {2, 7, 1, true}}));
  scheduler.resolve(1, 41);
  scheduler.resolve(2, 42);                                   // names 2's second block
  EXPECT_EQ(queue(scheduler, kv), (Works{{1, 8, 1, true}}));  // in the last block: 2 goes
  EXPECT_EQ(scheduler.preemptions(), 1);
  scheduler.remove(1);
  scheduler.add(make_sequence(3, 1, 1));
  EXPECT_EQ(queue(scheduler, kv), (Works{}));  // there is room, but not for an unknown token; 3 is behind
  scheduler.resolve(2, 43);
  EXPECT_EQ(scheduler.find(2)->tokens, (Tokens{200, 201, 202, 203, 204, 205, 206, 42, 43}));
  EXPECT_EQ(queue(scheduler, kv), (Works{{2, 8, 1, true}, {3, 0, 1, true}}));  // its two blocks were kept
}

TEST(Scheduler, ABlockIsFoundAgainOnlyIfItsPendingTokenWasResolved) {
  for (const bool resolved : {false, true}) {
    SCOPED_TRACE(resolved);
    KvCache kv(8, 4, true);
    Scheduler scheduler({.max_num_seqs = 4, .max_num_batched_tokens = 64}, kv);
    scheduler.add(make_sequence(1, 3, 10));
    EXPECT_EQ(queue(scheduler, kv), (Works{{1, 0, 3, true}}));
    EXPECT_EQ(queue(scheduler, kv), (Works{{1, 3, 1, true}}));  // fills a block
    if (resolved) scheduler.resolve(1, 40);
    scheduler.remove(1);
    EXPECT_EQ(kv.counts().used, 0);
    EXPECT_EQ(kv.counts().cached, resolved ? 1 : 0);
    scheduler.add(Sequence(2, {100, 101, 102, 40, 5}, {.max_tokens = 4}, 0));
    EXPECT_EQ(queue(scheduler, kv), (resolved ? Works{{2, 4, 1, true}} : Works{{2, 0, 5, true}}));
  }
}

TEST(Scheduler, RemoveWithPendingTokensFreesRunningAndPreempted) {
  KvCache kv(5, 4, false);
  Scheduler scheduler({.max_num_seqs = 8, .max_num_batched_tokens = 64}, kv);
  for (RequestId id = 1; id <= 2; ++id) scheduler.add(make_sequence(id, 8, 12));
  EXPECT_EQ(queue(scheduler, kv), (Works{{1, 0, 8, true}, {2, 0, 8, true}}));
  EXPECT_EQ(queue(scheduler, kv), (Works{{1, 8, 1, true}}));  // 2 is preempted with its first token pending
  scheduler.remove(2);
  EXPECT_EQ(kv.counts().used, 3);
  EXPECT_EQ(queue(scheduler, kv), (Works{{1, 9, 1, true}}));
  scheduler.remove(1);
  kv.check_integrity();
  EXPECT_EQ(kv.counts().free, 5);
  EXPECT_FALSE(scheduler.has_work());
}

TEST(Scheduler, ARepetitionPenaltyForbidsRunningAheadOfItsTokens) {
  KvCache kv(64, 4, false);
  Scheduler scheduler({.max_num_seqs = 4, .max_num_batched_tokens = 6}, kv);
  scheduler.add(make_sequence(1, 4, 10));
  scheduler.add(Sequence(2, {5, 6, 5}, {.max_tokens = 10, .repeat_penalty = 1.5f}, 0));
  EXPECT_EQ(queue(scheduler, kv), (Works{{1, 0, 4, true}, {2, 0, 2, false}}));
  EXPECT_TRUE(scheduler.may_run_ahead());  // 2 samples nothing yet
  EXPECT_EQ(queue(scheduler, kv), (Works{{1, 4, 1, true}, {2, 2, 1, true}}));
  EXPECT_FALSE(scheduler.may_run_ahead());
  scheduler.resolve(1, 40);
  scheduler.resolve(1, 41);
  EXPECT_FALSE(scheduler.may_run_ahead());
  scheduler.resolve(2, 42);
  EXPECT_TRUE(scheduler.may_run_ahead());
  EXPECT_TRUE(std::ranges::equal(scheduler.find(2)->seen.tokens(), Tokens{5, 6, 42}));
  EXPECT_EQ(queue(scheduler, kv), (Works{{1, 5, 1, true}, {2, 3, 1, true}}));
  EXPECT_FALSE(scheduler.may_run_ahead());
  scheduler.remove(2);
  EXPECT_TRUE(scheduler.may_run_ahead());
}

TEST(Scheduler, OptionsOutOfRangeAreRefused) {
  KvCache kv(4, 4, false);
  EXPECT_THROW(Scheduler({.max_num_seqs = 0}, kv), Error);
  EXPECT_THROW(Scheduler({.max_num_batched_tokens = 0}, kv), Error);
  EXPECT_THROW(Scheduler({.max_num_seqs = 8, .max_logits = 7}, kv), Error);
}

}  // namespace
}  // namespace spinfer
