#include "engine/scheduler.h"

#include <gtest/gtest.h>

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

/// Schedules and completes one step; every sampled token is 7.
std::vector<Work> step(Scheduler& scheduler, const KvCache& kv) {
  const Decision decision = scheduler.schedule();
  scheduler.complete(decision);
  std::vector<Work> work;
  for (const auto& w : decision.work) {
    work.push_back({w.seq->id, w.start, w.count, w.samples});
    if (w.samples) scheduler.append(w.seq->id, 7);
  }
  kv.check_integrity();
  return work;
}

using Works = std::vector<Work>;

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

TEST(Scheduler, OptionsOutOfRangeAreRefused) {
  KvCache kv(4, 4, false);
  EXPECT_THROW(Scheduler({.max_num_seqs = 0}, kv), Error);
  EXPECT_THROW(Scheduler({.max_num_batched_tokens = 0}, kv), Error);
  EXPECT_THROW(Scheduler({.max_num_seqs = 8, .max_logits = 7}, kv), Error);
}

}  // namespace
}  // namespace spinfer
