// The scheduler, the KV cache and the batch driven at random by a fake model, against each request run
// alone. As in the engine, up to two steps are queued (and three, which the scheduler allows as well): the
// younger is scheduled before the tokens of the older are known, and requests end or are cancelled
// meanwhile.
//
// The fake model keeps, per cache slot, a digest of all tokens up to it, made from the digest of the token
// before, which it reads through the block table: wrong slots, lost or wrongly shared blocks change the
// digest, and so the output. It runs a step when its results are collected, as late as a device could.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <span>

#include "engine/batch.h"
#include "engine/scheduler.h"

namespace spinfer {
namespace {

constexpr uint64_t kStart = 0x243f6a8885a308d3ull;
constexpr uint64_t kPoison = 0xdeadbeefdeadbeefull;
constexpr int32_t kStop = 3;  ///< ends a request that does not ignore it, one sample in 16

uint64_t mix(uint64_t digest, int32_t token) {
  uint64_t z = (digest ^ uint64_t(uint32_t(token) + 1)) * 0x9e3779b97f4a7c15ull;
  return z ^ (z >> 29);
}
/// `seen` is empty without a repetition penalty.
int32_t sample(uint64_t digest, std::span<const int32_t> seen) {
  for (const int32_t token : seen) digest = mix(digest, token);
  return (digest >> 40) % 16 == 0 ? kStop : int32_t((digest >> 20) % 3);
}

bool is_last(const SamplingParams& params, const std::vector<int32_t>& output) {
  return int(output.size()) == params.max_tokens || (!params.ignore_eos && output.back() == kStop);
}

struct Alone {
  std::vector<int32_t> output;    ///< with the stop token
  std::vector<uint64_t> digests;  ///< of all tokens but the last sampled one, which is never computed
};

Alone run_alone(const std::vector<int32_t>& prompt, const SamplingParams& params) {
  Alone alone;
  uint64_t digest = kStart;
  std::vector<int32_t> seen;
  const auto push = [&](int32_t token) {
    digest = mix(digest, token);
    alone.digests.push_back(digest);
    if (params.repeat_penalty != 1 && std::ranges::find(seen, token) == seen.end()) seen.push_back(token);
  };
  for (const int32_t token : prompt) push(token);
  while (params.max_tokens > 0) {
    alone.output.push_back(sample(digest, seen));
    if (is_last(params, alone.output)) break;
    push(alone.output.back());
  }
  return alone;
}

struct Settings {
  int64_t blocks;
  int block_size, max_seqs, max_tokens, max_logits;
  bool prefix_caching;
  int requests;
};

enum class RunAhead {
  never,     ///< one step at a time, and no pending token: `append`
  at_times,  ///< at random, where allowed
  always,    ///< where allowed
  further    ///< two steps ahead: who is preempted may have to wait for its pending token
};

/// What the simulations of one way came across.
struct Tally {
  int64_t steps = 0, ahead = 0, finished = 0, cancelled = 0, preempted = 0, prefix_hits = 0;
  int64_t refused = 0;            ///< steps not queued ahead because of a repetition penalty
  int64_t cancelled_pending = 0;  ///< with a token pending
  int64_t preempted_pending = 0;
  int64_t late_stops = 0;  ///< ended by a stop token when the next step was queued already

  friend std::ostream& operator<<(std::ostream& out, const Tally& t) {
    return out << t.steps << " steps, " << t.ahead << " queued ahead, " << t.refused << " not for a penalty; "
               << t.finished << " requests finished, " << t.late_stops << " learned so late; " << t.cancelled
               << " cancelled, " << t.cancelled_pending << " with a pending token; " << t.preempted
               << " preemptions, " << t.preempted_pending << " with a pending token; " << t.prefix_hits
               << " tokens from the prefix cache";
  }
};

/// How a request ended that was not cancelled.
struct Outcome {
  std::vector<int32_t> output;
  int64_t computed;  ///< leading tokens the fake model had computed
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

struct Request {
  std::vector<int32_t> prompt;
  SamplingParams params;
  Alone alone;
  std::vector<int32_t> output = {};       // as far as known
  std::set<int64_t> scored = {};          // positions whose log-probability was asked for
  std::optional<int64_t> scheduled = {};  // leading tokens in the cache after the queued steps, if running
  int64_t computed = 0;                   // leading tokens the fake model has computed
};

class Simulation {
 public:
  Simulation(const Settings& s, uint32_t seed, RunAhead run_ahead, Tally& tally)
      : settings_(s),
        run_ahead_(run_ahead),
        tally_(tally),
        kv_(s.blocks, s.block_size, s.prefix_caching),
        digests_(size_t(s.blocks * s.block_size), kPoison),
        scheduler_(
            {.max_num_seqs = s.max_seqs, .max_num_batched_tokens = s.max_tokens, .max_logits = s.max_logits},
            kv_),
        arrivals_(seed),
        random_(seed + 1) {}

  /// Until every request has ended. Request i is the same for the same settings and seed.
  void run() {
    for (int64_t steps = 0; last_id_ < RequestId(settings_.requests) || !idle(); ++steps) {
      ASSERT_LT(steps, 100 * settings_.requests) << "requests that never end";
      step();
      if (testing::Test::HasFailure()) return;
    }
    ASSERT_NO_THROW(kv_.check_integrity());
    ASSERT_EQ(kv_.available(), settings_.blocks);
    tally_.preempted += scheduler_.preemptions();
    tally_.prefix_hits += scheduler_.prefix_hit_tokens();
  }

  const std::map<RequestId, Outcome>& outcomes() const { return outcomes_; }

 private:
  /// A step that is queued: sequence s of the batch is of request ids[s].
  struct Step {
    Batch batch;
    std::vector<RequestId> ids;
  };

  static int pick(std::mt19937& random, int count) { return int(random() % uint32_t(count)); }
  size_t most_in_flight() const {
    return run_ahead_ == RunAhead::never ? 1 : run_ahead_ == RunAhead::further ? 3 : 2;
  }
  bool idle() const { return requests_.empty() && !scheduler_.has_work() && in_flight_.empty(); }

  void step() {
    const bool more = last_id_ < RequestId(settings_.requests);
    if (more && scheduler_.waiting() < 12 && pick(random_, 3) == 0) arrive();
    if (pick(random_, 40) == 0 && !requests_.empty()) cancel();
    if (in_flight_.empty()) queue();
    for (size_t queued = in_flight_.size(); queued < most_in_flight(); ++queued) {
      if (run_ahead_ == RunAhead::at_times && pick(random_, 4) == 0) break;
      if (!scheduler_.may_run_ahead()) {
        ++tally_.refused;
        break;
      }
      queue();
    }
    if (!in_flight_.empty()) collect();
    if (++tally_.steps % 8 == 0) {
      ASSERT_NO_THROW(kv_.check_integrity());
    }
  }

  void arrive() {
    const auto pick = [this](int count) { return Simulation::pick(arrivals_, count); };
    const int capacity = int(kv_.capacity_tokens());
    const int length = 1 + pick(pick(4) ? std::min(capacity, 40) : capacity);
    std::vector<int32_t> prompt;  // many share a prefix
    const int family = pick(3), common = pick(length + 1);
    for (int i = 0; i < length; ++i) prompt.push_back(i < common ? family + 10 : pick(2) + 20);
    const int room = capacity - length + 1;
    const bool scoring = pick(6) == 0;
    const RequestId id = ++last_id_;
    SamplingParams params{.max_tokens = scoring && pick(2) ? 0 : 1 + pick(std::min(room, 30)),
                          .ignore_eos = pick(2) == 0,
                          .prompt_logprobs = scoring};
    // A single penalty holds back all: they come in waves.
    if (id % 64 < 16 && pick(2) == 0) params.repeat_penalty = 1.5f;
    requests_[id] = {.prompt = prompt, .params = params, .alone = run_alone(prompt, params)};
    scheduler_.add(Sequence(id, prompt, params, 0));
  }

  void cancel() {
    const auto victim = std::next(requests_.begin(), pick(random_, int(requests_.size())));
    const auto& [id, request] = *victim;
    ASSERT_LE(request.output.size(), request.alone.output.size());
    ASSERT_TRUE(
        std::ranges::equal(request.output, std::span(request.alone.output).first(request.output.size())));
    tally_.cancelled_pending += scheduler_.find(id)->pending > 0;
    ++tally_.cancelled;
    scheduler_.remove(id);
    requests_.erase(victim);
  }

  void queue() {
    const Decision decision = scheduler_.schedule();
    if (in_flight_.empty()) {
      ASSERT_EQ(decision.work.empty(), !scheduler_.has_work()) << "a step with work to do did nothing";
    }
    for (const RequestId id : decision.preempted) {
      requests_.at(id).scheduled.reset();
      tally_.preempted_pending += scheduler_.find(id)->pending > 0;
    }
    check_limits(decision);
    check_positions(decision);
    if (decision.work.empty()) return;
    Step step{.batch = make_batch(decision, kv_), .ids = {}};
    for (const ScheduledTokens& work : decision.work) step.ids.push_back(work.seq->id);
    check_batch(step);
    scheduler_.complete(decision);
    const std::vector<RequestId>& samples = step.batch.sample_ids;
    for (size_t row = 0; row < samples.size() && run_ahead_ != RunAhead::never; ++row)
      scheduler_.append_pending(samples[row], int32_t(row));
    tally_.ahead += !in_flight_.empty();
    in_flight_.push_back(std::move(step));
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
    for (const auto& [id, request] : requests_) {
      if (id < newest_started_) {
        ASSERT_TRUE(scheduler_.find(id)->admitted_before);
      }
    }
  }

  /// While a request runs, each of its positions is computed once, and none that it cannot need.
  void check_positions(const Decision& decision) {
    for (const ScheduledTokens& work : decision.work) {
      Request& request = requests_.at(work.seq->id);
      if (request.scheduled) {
        ASSERT_EQ(work.start, *request.scheduled) << "skipped, or computed twice";
      } else if (settings_.prefix_caching) {
        ASSERT_EQ(work.start % settings_.block_size, 0);
      } else {
        ASSERT_EQ(work.start, 0);
      }
      request.scheduled = work.start + work.count;
      ASSERT_LE(*request.scheduled, work.seq->most_cached());
    }
  }

  void check_batch(const Step& step) {
    const Batch& batch = step.batch;
    ASSERT_LE(int(batch.logit_rows.size()), settings_.max_logits);
    std::map<int32_t, RequestId> writers;  // of blocks
    for (int s = 0; s < batch.sequences(); ++s) {
      for (int row = batch.query_start[s]; row < batch.query_start[s + 1]; ++row) {
        const int32_t block = batch.slots[row] / settings_.block_size;
        ASSERT_EQ(writers.try_emplace(block, step.ids[s]).first->second, step.ids[s]);
        const int32_t token = batch.token_ids[row];
        if (token >= 0) continue;
        ASSERT_EQ(row + 1, batch.query_start[s + 1]) << "only the newest token can be pending";
        ASSERT_FALSE(in_flight_.empty());
        ASSERT_EQ(in_flight_.back().batch.sample_ids.at(size_t(-1 - token)), step.ids[s]);
      }
    }
    for (const auto& [id, request] : requests_) {
      if (!request.scheduled) continue;
      for (const int32_t block : kv_.table(id)) {
        const auto writer = writers.find(block);
        ASSERT_TRUE(writer == writers.end() || writer->second == id) << "block " << block << " in two hands";
      }
    }
  }

  void collect() {
    ASSERT_LE(in_flight_.size(), most_in_flight());
    const Step step = std::move(in_flight_.front());
    in_flight_.pop_front();
    newest_ = execute(step);
    const Batch& batch = step.batch;
    for (size_t i = 0; i < batch.scores.size(); ++i) {
      const auto entry = requests_.find(batch.scores[i].id);
      if (entry == requests_.end()) continue;
      const int64_t position = batch.scores[i].position;
      ASSERT_EQ(batch.score_targets[i], entry->second.prompt.at(size_t(position)));
      entry->second.scored.insert(position);
    }
    for (size_t i = 0; i < newest_.size(); ++i) accept(batch.sample_ids[i], newest_[i]);
  }

  /// What the step samples.
  std::vector<int32_t> execute(const Step& step) {
    const Batch& batch = step.batch;
    std::vector<uint64_t> rows(size_t(batch.tokens()));
    const int bs = settings_.block_size;
    for (int s = 0; s < batch.sequences(); ++s) {
      const int32_t* table = &batch.block_table[size_t(s) * batch.max_blocks];
      const auto entry = requests_.find(step.ids[s]);
      for (int row = batch.query_start[s]; row < batch.query_start[s + 1]; ++row) {
        const int position = batch.positions[row];
        const uint64_t before =
            position == 0 ? kStart : digests_[size_t(table[(position - 1) / bs]) * bs + (position - 1) % bs];
        const int32_t token = batch.token_ids[row];
        rows[row] = mix(before, token >= 0 ? token : newest_.at(size_t(-1 - token)));
        digests_[batch.slots[row]] = rows[row];
        if (entry == requests_.end()) continue;  // it ended after this step was queued
        EXPECT_EQ(rows[row], entry->second.alone.digests.at(size_t(position)));
        entry->second.computed = std::max<int64_t>(entry->second.computed, position + 1);
      }
    }
    std::vector<int32_t> sampled;
    for (size_t i = 0; i < batch.sample_ids.size(); ++i) {
      const SampleRow& row = batch.sample_rows[i];
      const auto seen = std::span(batch.seen).subspan(row.seen_begin, row.seen_end - row.seen_begin);
      sampled.push_back(sample(rows[batch.logit_rows[i]], seen));
    }
    return sampled;
  }

  void accept(RequestId id, int32_t token) {
    const auto entry = requests_.find(id);
    if (entry == requests_.end()) return;  // it ended after this step was queued
    Request& request = entry->second;
    if (request.params.max_tokens > 0) request.output.push_back(token);
    if (is_last(request.params, request.output)) return finish(id);
    run_ahead_ == RunAhead::never ? scheduler_.append(id, token) : scheduler_.resolve(id, token);
    const Sequence& sequence = *scheduler_.find(id);
    ASSERT_EQ(sequence.known(), int64_t(request.prompt.size() + request.output.size()));
    ASSERT_EQ(sequence.tokens[size_t(sequence.known() - 1)], token);
    const auto samples_it = [id](const Step& step) {
      return std::ranges::count(step.batch.sample_ids, id) > 0;
    };
    ASSERT_EQ(sequence.pending,
              run_ahead_ == RunAhead::never ? 0 : std::ranges::count_if(in_flight_, samples_it));
  }

  void finish(RequestId id) {
    const Request& request = requests_.at(id);
    ASSERT_EQ(request.output, request.alone.output);
    ASSERT_EQ(request.computed, int64_t(request.alone.digests.size()));
    if (request.params.prompt_logprobs) {
      ASSERT_EQ(request.scored.size(), request.prompt.size() - 1);
    }
    tally_.late_stops += !in_flight_.empty() && std::ranges::count(in_flight_.back().ids, id) > 0;
    ++tally_.finished;
    outcomes_[id] = {request.output, request.computed};
    scheduler_.remove(id);
    requests_.erase(id);
  }

  Settings settings_;
  RunAhead run_ahead_;
  Tally& tally_;
  KvCache kv_;
  std::vector<uint64_t> digests_;
  Scheduler scheduler_;
  std::mt19937 arrivals_, random_;
  std::map<RequestId, Request> requests_;  // waiting and running
  std::map<RequestId, Outcome> outcomes_;
  std::deque<Step> in_flight_;   // queued and not collected
  std::vector<int32_t> newest_;  // sampled by the last step that was executed
  RequestId last_id_ = 0, newest_started_ = 0;
};

/// Requests that were cancelled in either simulation are left out. Returns how many are not.
int64_t expect_equal(const std::map<RequestId, Outcome>& got, const std::map<RequestId, Outcome>& want) {
  int64_t compared = 0;
  for (const auto& [id, outcome] : want) {
    const auto other = got.find(id);
    if (other == got.end()) continue;
    EXPECT_EQ(other->second, outcome) << "request " << id;
    ++compared;
  }
  return compared;
}

const std::vector<Settings> kSettings = {
    // blocks, block_size, max_seqs, max_tokens, max_logits, prefix_caching, requests
    {1, 5, 2, 3, 2, true, 500},        // a single block
    {7, 1, 3, 5, 3, true, 3000},       // a block per token
    {4, 4, 4, 8, 4, true, 3000},       // few blocks: preemption
    {12, 4, 8, 16, 9, true, 3000},     // some more
    {12, 4, 8, 16, 9, false, 3000},    // and no prefix caching
    {64, 2, 6, 1, 6, true, 500},       // a token per step
    {32, 16, 16, 64, 20, true, 3000},  // large blocks
    {40, 8, 64, 512, 64, true, 3000},  // whole prompts
};

TEST(SchedulerProperty, EveryRequestEndsWithTheTokensItHasAlone) {
  std::map<RunAhead, Tally> tallies;
  for (size_t i = 0; i < kSettings.size(); ++i) {
    SCOPED_TRACE(i);
    std::map<RequestId, Outcome> want;
    for (const RunAhead way : {RunAhead::never, RunAhead::at_times, RunAhead::always, RunAhead::further}) {
      SCOPED_TRACE(int(way));
      Simulation simulation(kSettings[i], uint32_t(100 + i), way, tallies[way]);
      simulation.run();
      if (HasFailure()) return;
      if (way == RunAhead::never) want = simulation.outcomes();
      EXPECT_GT(expect_equal(simulation.outcomes(), want), kSettings[i].requests / 5);
    }
  }
  for (const auto& [way, tally] : tallies) {
    SCOPED_TRACE(int(way));
    std::cout << tally << "\n";
    EXPECT_GT(tally.finished, 5000);
    EXPECT_GT(tally.cancelled, 500);
    EXPECT_GT(tally.preempted, 800);
    EXPECT_GT(tally.prefix_hits, 10000);
    if (way == RunAhead::never) continue;
    EXPECT_GT(tally.ahead, tally.steps / 2);
    EXPECT_GT(tally.refused, 1000);
    EXPECT_GT(tally.cancelled_pending, 100);
    EXPECT_GT(tally.preempted_pending, 100);
    EXPECT_GT(tally.late_stops, 1000);
  }
}

}  // namespace
}  // namespace spinfer
