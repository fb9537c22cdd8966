// The scheduler, the KV cache and the batch driven at random by a fake model, against each request run alone.
//
// The fake model keeps, per cache slot, a digest of all tokens up to it, made from the digest of the token
// before, which it reads through the block table: wrong slots, lost or wrongly shared blocks change the
// digest, and so the output.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "engine/batch.h"
#include "engine/scheduler.h"

namespace spinfer {
namespace {

constexpr uint64_t kStart = 0x243f6a8885a308d3ull;
constexpr uint64_t kPoison = 0xdeadbeefdeadbeefull;

uint64_t mix(uint64_t digest, int32_t token) {
  uint64_t z = (digest ^ uint64_t(uint32_t(token) + 1)) * 0x9e3779b97f4a7c15ull;
  return z ^ (z >> 29);
}
int32_t next_token(uint64_t digest) {
  return int32_t((digest >> 20) % 3);
}

std::vector<int32_t> run_alone(std::vector<int32_t> tokens, int count) {
  uint64_t digest = kStart;
  for (int32_t token : tokens) digest = mix(digest, token);
  std::vector<int32_t> output;
  for (int i = 0; i < count; ++i) {
    output.push_back(next_token(digest));
    digest = mix(digest, output.back());
  }
  return output;
}

struct Settings {
  int64_t blocks;
  int block_size, max_seqs, max_tokens, max_logits;
  bool prefix_caching;
};

struct Expected {
  std::vector<int32_t> prompt;
  int max_tokens;
  bool scoring;
  std::set<int64_t> scored;  // positions whose log-probability was asked for
};

class Simulation {
 public:
  Simulation(const Settings& s, uint32_t seed)
      : settings_(s),
        kv_(s.blocks, s.block_size, s.prefix_caching),
        digests_(size_t(s.blocks * s.block_size), kPoison),
        scheduler_(
            {.max_num_seqs = s.max_seqs, .max_num_batched_tokens = s.max_tokens, .max_logits = s.max_logits},
            kv_),
        random_(seed) {}

  void step(bool arrivals) {
    if (arrivals && scheduler_.waiting() < 12 && pick(3) == 0) arrive();
    if (pick(40) == 0 && !expected_.empty()) {
      const auto victim = std::next(expected_.begin(), pick(int(expected_.size())));
      scheduler_.remove(victim->first);
      expected_.erase(victim);
      ++cancelled;
    }
    const Decision decision = scheduler_.schedule();
    ASSERT_EQ(decision.work.empty(), !scheduler_.has_work()) << "a step with work to do did nothing";
    check_limits(decision);
    const Batch batch = make_batch(decision, kv_);
    const auto sampled = run(batch);
    scheduler_.complete(decision);
    for (size_t i = 0; i < sampled.size(); ++i) append(batch.sample_ids[i], sampled[i]);
    if (++steps % 8 == 0) {
      ASSERT_NO_THROW(kv_.check_integrity());
    }
  }

  bool idle() const { return expected_.empty() && !scheduler_.has_work(); }
  const KvCache& kv() const { return kv_; }
  const Scheduler& scheduler() const { return scheduler_; }
  int64_t steps = 0, finished = 0, cancelled = 0;

 private:
  int pick(int count) { return int(random_() % uint32_t(count)); }

  void arrive() {
    const int capacity = int(kv_.capacity_tokens());
    const int length = 1 + pick(pick(4) ? std::min(capacity, 40) : capacity);
    std::vector<int32_t> prompt;  // many share a prefix
    const int family = pick(3), common = pick(length + 1);
    for (int i = 0; i < length; ++i) prompt.push_back(i < common ? family + 10 : pick(2) + 20);
    const int room = capacity - length + 1;
    const bool scoring = pick(6) == 0;
    const int max_tokens = scoring && pick(2) ? 0 : 1 + pick(std::min(room, 30));
    const RequestId id = ++last_id_;
    expected_[id] = {prompt, max_tokens, scoring, {}};
    scheduler_.add(Sequence(id, prompt, {.max_tokens = max_tokens, .prompt_logprobs = scoring}, 0));
  }

  void check_limits(const Decision& decision) {
    int tokens = 0;
    std::set<RequestId> ids;
    for (size_t i = 0; i < decision.work.size(); ++i) {
      const ScheduledTokens& work = decision.work[i];
      ASSERT_TRUE(ids.insert(work.seq->id).second);
      ASSERT_GE(work.count, 1);
      ASSERT_EQ(work.start, work.seq->computed);
      ASSERT_EQ(work.samples, work.start + work.count == work.seq->size());
      const bool among_decodes = int(i) < decision.decode_tokens;
      if (among_decodes) {
        ASSERT_TRUE(work.seq->decoding());
      }
      if (i > 0 && int(i) != decision.decode_tokens) {
        ASSERT_GT(work.seq->id, decision.work[i - 1].seq->id) << "not in order of arrival";
      }
      tokens += work.count;
      newest_started_ = std::max(newest_started_, work.seq->id);
    }
    ASSERT_LE(tokens, settings_.max_tokens);
    ASSERT_LE(scheduler_.running(), settings_.max_seqs);
    ASSERT_EQ(tokens, decision.decode_tokens + decision.prefill_tokens);
    // First come first served: whoever is older than the newest that started has started too, or was
    // cancelled.
    for (const auto& [id, request] : expected_) {
      if (id < newest_started_) {
        ASSERT_TRUE(scheduler_.find(id)->admitted_before);
      }
    }
  }

  std::vector<int32_t> run(const Batch& batch) {
    std::vector<uint64_t> rows(size_t(batch.tokens()));
    const int bs = settings_.block_size;
    for (int s = 0; s < batch.sequences(); ++s) {
      const int32_t* table = &batch.block_table[size_t(s) * batch.max_blocks];
      for (int row = batch.query_start[s]; row < batch.query_start[s + 1]; ++row) {
        const int position = batch.positions[row];
        const uint64_t before =
            position == 0 ? kStart : digests_[size_t(table[(position - 1) / bs]) * bs + (position - 1) % bs];
        rows[row] = digests_[batch.slots[row]] = mix(before, batch.token_ids[row]);
      }
    }
    for (size_t i = 0; i < batch.scores.size(); ++i) {
      Expected& request = expected_.at(batch.scores[i].id);
      const int64_t position = batch.scores[i].position;
      EXPECT_EQ(batch.score_targets[i], request.prompt.at(position));
      request.scored.insert(position);
    }
    EXPECT_LE(int(batch.logit_rows.size()), settings_.max_logits);
    std::vector<int32_t> sampled;
    for (size_t i = 0; i < batch.sample_ids.size(); ++i)
      sampled.push_back(next_token(rows[batch.logit_rows[i]]));
    return sampled;
  }

  void append(RequestId id, int32_t token) {
    const Expected& request = expected_.at(id);
    if (request.max_tokens > 0) scheduler_.append(id, token);
    const Sequence& sequence = *scheduler_.find(id);
    if (sequence.output_size() < request.max_tokens) return;
    const std::vector<int32_t> output(sequence.tokens.begin() + sequence.prompt_size, sequence.tokens.end());
    ASSERT_EQ(output, run_alone(request.prompt, request.max_tokens));
    if (request.scoring) {
      ASSERT_EQ(request.scored.size(), request.prompt.size() - 1);
    }
    scheduler_.remove(id);
    expected_.erase(id);
    ++finished;
  }

  Settings settings_;
  KvCache kv_;
  std::vector<uint64_t> digests_;
  Scheduler scheduler_;
  std::mt19937 random_;
  std::map<RequestId, Expected> expected_;
  RequestId last_id_ = 0, newest_started_ = 0;
};

TEST(SchedulerProperty, EveryRequestEndsWithTheTokensItHasAlone) {
  const std::vector<Settings> all = {
      {.blocks = 4, .block_size = 4, .max_seqs = 4, .max_tokens = 8, .max_logits = 4, .prefix_caching = true},
      {.blocks = 12,
       .block_size = 4,
       .max_seqs = 8,
       .max_tokens = 16,
       .max_logits = 9,
       .prefix_caching = true},
      {.blocks = 12,
       .block_size = 4,
       .max_seqs = 8,
       .max_tokens = 16,
       .max_logits = 9,
       .prefix_caching = false},
      {.blocks = 32,
       .block_size = 16,
       .max_seqs = 16,
       .max_tokens = 64,
       .max_logits = 20,
       .prefix_caching = true},
      {.blocks = 7, .block_size = 1, .max_seqs = 3, .max_tokens = 5, .max_logits = 3, .prefix_caching = true},
      {.blocks = 64,
       .block_size = 2,
       .max_seqs = 6,
       .max_tokens = 1,
       .max_logits = 6,
       .prefix_caching = true},
      {.blocks = 40,
       .block_size = 8,
       .max_seqs = 64,
       .max_tokens = 512,
       .max_logits = 64,
       .prefix_caching = true},
  };
  int64_t steps = 0, finished = 0, cancelled = 0, preempted = 0, hits = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    SCOPED_TRACE(i);
    Simulation simulation(all[i], uint32_t(100 + i));
    for (int step = 0; step < 16000; ++step) {
      simulation.step(true);
      if (testing::Test::HasFailure()) return;
    }
    for (int step = 0; step < 20000 && !simulation.idle(); ++step) {
      simulation.step(false);
      if (testing::Test::HasFailure()) return;
    }
    ASSERT_TRUE(simulation.idle()) << "requests that never end";
    simulation.kv().check_integrity();
    EXPECT_EQ(simulation.kv().counts().used, 0);
    steps += simulation.steps;
    finished += simulation.finished;
    cancelled += simulation.cancelled;
    preempted += simulation.scheduler().preemptions();
    hits += simulation.scheduler().prefix_hit_tokens();
  }
  EXPECT_GE(steps, 100000);
  EXPECT_GT(finished, 5000);
  EXPECT_GT(cancelled, 500);
  EXPECT_GT(preempted, 1000);
  EXPECT_GT(hits, 10000);
  std::cout << steps << " steps: " << finished << " requests finished, " << cancelled << " cancelled, "
            << preempted << " preemptions, " << hits << " tokens from the prefix cache\n";
}

}  // namespace
}  // namespace spinfer
