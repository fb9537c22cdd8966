#include "engine/batch.h"

#include <gtest/gtest.h>

namespace spinfer {
namespace {

using Ints = std::vector<int32_t>;

/// A sequence whose first `computed` tokens are in the cache, with blocks for all of its tokens.
Sequence make_sequence(KvCache& kv, RequestId id, Ints prompt, int64_t computed, SamplingParams params = {}) {
  Sequence sequence(id, std::move(prompt), params, 1000 + id);
  sequence.computed = computed;
  kv.open(id, {});
  EXPECT_TRUE(kv.grow(id, sequence.size()));
  return sequence;
}

int32_t slot(const KvCache& kv, RequestId id, int position) {
  return kv.table(id)[position / kv.block_size()] * kv.block_size() + position % kv.block_size();
}

TEST(Batch, OfNothingIsEmpty) {
  KvCache kv(4, 4, false);
  const Batch batch = make_batch({}, kv);
  EXPECT_EQ(batch.tokens(), 0);
  EXPECT_EQ(batch.query_start, Ints{0});
  EXPECT_TRUE(batch.logit_rows.empty());
}

TEST(Batch, DecodeAndChunksBecomeFlatArrays) {
  KvCache kv(16, 4, false);
  Sequence decode = make_sequence(kv, 1, {10, 11, 12, 13}, 4);
  decode.append(14);
  ASSERT_TRUE(kv.grow(1, 5));
  const Sequence chunk = make_sequence(kv, 2, {20, 21, 22, 23, 24, 25, 26, 27, 28, 29}, 3);
  const Sequence whole = make_sequence(kv, 3, {30, 31}, 0);
  const Decision decision{.work = {{&decode, 4, 1, true}, {&chunk, 3, 6, false}, {&whole, 0, 2, true}}};
  const Batch batch = make_batch(decision, kv);

  EXPECT_EQ(batch.token_ids, (Ints{14, 23, 24, 25, 26, 27, 28, 30, 31}));
  EXPECT_EQ(batch.positions, (Ints{4, 3, 4, 5, 6, 7, 8, 0, 1}));
  EXPECT_EQ(batch.query_start, (Ints{0, 1, 7, 9}));
  EXPECT_EQ(batch.context_len, (Ints{5, 9, 2}));
  EXPECT_EQ(batch.slots, (Ints{slot(kv, 1, 4), slot(kv, 2, 3), slot(kv, 2, 4), slot(kv, 2, 5), slot(kv, 2, 6),
                               slot(kv, 2, 7), slot(kv, 2, 8), slot(kv, 3, 0), slot(kv, 3, 1)}));
  EXPECT_EQ(batch.max_blocks, 3);
  EXPECT_EQ(batch.max_query_len, 6);
  EXPECT_EQ(batch.max_context_len, 9);
  const auto t1 = kv.table(1), t2 = kv.table(2), t3 = kv.table(3);
  EXPECT_EQ(batch.block_table, (Ints{t1[0], t1[1], 0, t2[0], t2[1], t2[2], t3[0], 0, 0}));
  EXPECT_EQ(batch.logit_rows, (Ints{0, 8}));
  EXPECT_EQ(batch.sample_ids, (std::vector<RequestId>{1, 3}));
  ASSERT_EQ(batch.sample_rows.size(), 2u);
  EXPECT_EQ(batch.sample_rows[0].step, 1u);
  EXPECT_EQ(batch.sample_rows[0].seed, 1001u);
  EXPECT_EQ(batch.sample_rows[1].step, 0u);
  EXPECT_EQ(batch.sample_rows[1].seed, 1003u);
}

TEST(Batch, SampleRowsCarryTheParameters) {
  KvCache kv(8, 4, false);
  const SamplingParams params{.temperature = 0.7f,
                              .top_k = 5,
                              .top_p = 0.5f,
                              .min_p = 0.1f,
                              .repeat_penalty = 1.5f,
                              .logit_bias = {{2, -1}, {5, 4}},
                              .seed = 42};
  const Sequence other = make_sequence(kv, 2, {1, 2}, 0, {.logit_bias = {{9, 3}}});
  Sequence sequence = make_sequence(kv, 1, {7, 8, 7}, 3, params);
  sequence.append(9);
  sequence.append(8);
  ASSERT_TRUE(kv.grow(1, 5));
  const Batch batch = make_batch({.work = {{&other, 0, 2, true}, {&sequence, 4, 1, true}}}, kv);
  ASSERT_EQ(batch.biases.size(), 3u);
  EXPECT_EQ(batch.biases[size_t(batch.sample_rows.at(0).bias_begin)].id, 9);
  const SampleRow& row = batch.sample_rows.at(1);
  ASSERT_EQ(row.bias_end - row.bias_begin, 2);
  EXPECT_EQ(batch.biases[size_t(row.bias_begin)].id, 2);
  EXPECT_EQ(batch.biases[size_t(row.bias_begin) + 1].bias, 4);
  EXPECT_EQ(row.temperature, 0.7f);
  EXPECT_EQ(row.top_k, 5);
  EXPECT_EQ(row.top_p, 0.5f);
  EXPECT_EQ(row.min_p, 0.1f);
  EXPECT_EQ(row.repeat_penalty, 1.5f);
  EXPECT_EQ(row.seed, 42u);
  EXPECT_EQ(row.step, 2u);
  EXPECT_EQ(Ints(batch.seen.begin() + row.seen_begin, batch.seen.begin() + row.seen_end), (Ints{7, 8, 9}));
}

TEST(Batch, RowsThatWantLogprobsComeFirst) {
  KvCache kv(8, 4, false);
  const Sequence plain = make_sequence(kv, 1, {1, 2}, 0);
  const Sequence three = make_sequence(kv, 2, {3, 4, 5}, 0, {.logprobs = 3});
  const Sequence none = make_sequence(kv, 3, {6}, 0, {.logprobs = 0});
  const Batch batch =
      make_batch({.work = {{&plain, 0, 2, true}, {&three, 0, 3, true}, {&none, 0, 1, true}}}, kv);
  EXPECT_EQ(batch.sample_ids, (std::vector<RequestId>{2, 3, 1}));
  EXPECT_EQ(batch.logit_rows, (Ints{4, 5, 1}));
  EXPECT_EQ(batch.logprob_rows, 2);
  EXPECT_EQ(batch.top, 3);
  EXPECT_TRUE(batch.seen.empty());
}

TEST(Batch, PromptScoresFollowTheSamples) {
  KvCache kv(8, 4, false);
  const SamplingParams score{.max_tokens = 0, .prompt_logprobs = true};
  const Sequence first = make_sequence(kv, 1, {10, 11, 12, 13, 14}, 0, score);
  const Sequence last = make_sequence(kv, 2, {20, 21, 22, 23}, 2, score);
  const Batch batch = make_batch({.work = {{&first, 0, 3, false}, {&last, 2, 2, true}}}, kv);
  EXPECT_EQ(batch.sample_ids, (std::vector<RequestId>{2}));
  EXPECT_EQ(batch.logit_rows, (Ints{4, 0, 1, 2, 3}));
  EXPECT_EQ(batch.score_targets, (Ints{11, 12, 13, 23}));
  ASSERT_EQ(batch.scores.size(), 4u);
  EXPECT_EQ(batch.scores[0].id, 1u);
  EXPECT_EQ(batch.scores[0].position, 1);
  EXPECT_EQ(batch.scores[2].position, 3);
  EXPECT_EQ(batch.scores[3].id, 2u);
  EXPECT_EQ(batch.scores[3].position, 3);
}

}  // namespace
}  // namespace spinfer
