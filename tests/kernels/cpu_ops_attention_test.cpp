// Attention over a paged cache: against a double-precision reference, and bitwise independent of chunks,
// batch, threads.
#include "kernels/check.h"
#include "tests/kernels/paged_batch.h"

namespace spinfer::test {
namespace {

using CpuAttention = CpuOps;
SPINFER_ON_ALL_TARGETS(CpuAttention);

TEST_P(CpuAttention, MatchesTheReference) {
  Random random(1);
  for (const int dim : {8, 16, 64, 80, 96, 128}) {
    for (const Heads heads : {Heads{1, 1, dim}, Heads{4, 2, dim}, Heads{8, 2, dim}, Heads{8, 1, dim}}) {
      const Sequence a = random_sequence(random, heads, 37), b = random_sequence(random, heads, 1),
                     c = random_sequence(random, heads, 150), d = random_sequence(random, heads, 64);
      // Prefill, one-token prompt, decode far into a context, a chunk in the middle, decode at a block's
      // first token.
      const std::vector<Chunk> chunks = {{&a, 37, 37}, {&b, 1, 1}, {&c, 150, 1}, {&d, 60, 13}, {&a, 33, 1}};
      const float scale = 1 / std::sqrt(float(dim));
      const auto got = PagedBatch(random, heads, chunks).attend(device_, scale);
      Reference want;
      for (const Chunk& chunk : chunks) {
        const Reference one = reference(heads, chunk, scale);
        want.out.insert(want.out.end(), one.out.begin(), one.out.end());
        want.error = std::max(want.error, one.error);
      }
      EXPECT_LT(want.error, 2e-3);
      EXPECT_TRUE(near(got, want.out, half_rounding_after(want.error)))
          << heads.q << "/" << heads.kv << " × " << dim;
    }
  }
}

TEST_P(CpuAttention, MatchesTheReferenceOnOddSizes) {
  Random random(2);
  // Block sizes other than 16, head sizes no vector length divides, a group larger than a tile of query rows.
  for (const Heads heads :
       {Heads{2, 1, 7, 5}, Heads{40, 1, 20, 16}, Heads{3, 3, 1, 1}, Heads{2, 2, 33, 64}}) {
    const Sequence a = random_sequence(random, heads, 67);
    const Chunk chunk{&a, 67, 20};
    const auto got = PagedBatch(random, heads, {chunk}).attend(device_, 0.3f);
    const Reference want = reference(heads, chunk, double(0.3f));
    EXPECT_TRUE(near(got, want.out, half_rounding_after(want.error))) << heads.dim;
  }
}

// Scores far apart: the running maximum must be subtracted before exp, and must rescale what came before.
TEST_P(CpuAttention, SurvivesLargeScores) {
  Random random(3);
  const Heads heads{2, 1, 64};
  Sequence s = random_sequence(random, heads, 100);
  for (int t = 0; t < s.context; ++t)
    for (int i = 0; i < heads.dim; ++i)
      s.k[size_t(t) * heads.dim + i] = to_half(float(t) * (i % 2 ? 1.5f : 1.0f));
  for (Half& q : s.q)
    q = to_half(2 + std::abs(to_float(q)));  // scores grow with the position, up to thousands
  const Chunk chunk{&s, 100, 100};
  const auto got = PagedBatch(random, heads, {chunk}).attend(device_, 1.0f);
  // Neighbouring scores differ by more than 160: each token sees only itself.
  std::vector<double> want;
  for (int t = 0; t < 100; ++t)
    for (int head = 0; head < 2; ++head)
      for (int i = 0; i < heads.dim; ++i) want.push_back(to_double(s.v[size_t(t) * heads.dim + i]));
  EXPECT_TRUE(near(got, want, {0, 0}));
}

TEST_P(CpuAttention, ChunkedPrefillEqualsWholePrefill) {
  Random random(4);
  for (const Heads heads : {Heads{4, 4, 64}, Heads{8, 2, 80}}) {
    const Sequence s = random_sequence(random, heads, 300);
    const float scale = 0.125f;
    const auto whole = PagedBatch(random, heads, {{&s, 300, 300}}).attend(device_, scale);
    for (const std::vector<int>& ends :
         {std::vector<int>{1, 2, 19, 64, 65, 300}, {128, 256, 300}, {299, 300}}) {
      std::vector<Half> pieces;
      int begin = 0;
      for (const int end : ends) {
        const auto piece = PagedBatch(random, heads, {{&s, end, end - begin}}).attend(device_, scale);
        pieces.insert(pieces.end(), piece.begin(), piece.end());
        begin = end;
      }
      EXPECT_EQ(pieces, whole);
    }
  }
}

TEST_P(CpuAttention, BatchEqualsEachSequenceAlone) {
  Random random(5);
  const Heads heads{8, 2, 64};
  std::vector<Sequence> sequences;
  for (const int context : {1, 16, 17, 150, 33}) sequences.push_back(random_sequence(random, heads, context));
  std::vector<Chunk> chunks;
  for (const Sequence& s : sequences) chunks.push_back({&s, s.context, std::min(s.context, 20)});
  chunks.push_back({&sequences[3], 149, 1});
  const auto batch = PagedBatch(random, heads, chunks).attend(device_, 0.125f);
  std::vector<Half> alone;
  for (const Chunk& chunk : chunks) {
    const auto one = PagedBatch(random, heads, {chunk}).attend(device_, 0.125f);
    alone.insert(alone.end(), one.begin(), one.end());
  }
  EXPECT_EQ(batch, alone);
}

TEST_P(CpuAttention, ThreadsDoNotChangeTheResult) {
  Random random(6);
  const Heads heads{8, 4, 96};
  const Sequence a = random_sequence(random, heads, 200), b = random_sequence(random, heads, 31);
  PagedBatch batch(random, heads, {{&a, 200, 77}, {&b, 31, 31}});
  CpuDevice one(1), five(5);
  EXPECT_EQ(batch.attend(one, 0.1f), batch.attend(five, 0.1f));
}

// A NaN in the context is a bug upstream: it must show, not vanish in the softmax.
TEST_P(CpuAttention, NanInTheContextShows) {
  Random random(7);
  const Heads heads{1, 1, 64};
  for (const bool in_key : {true, false}) {
    Sequence s = random_sequence(random, heads, 40);
    (in_key ? s.k : s.v)[17 * 64 + 3] = kNanHalf;
    const auto out = PagedBatch(random, heads, {{&s, 40, 40}}).attend(device_, 0.125f);
    for (int t = 0; t < 40; ++t) EXPECT_EQ(std::isnan(to_float(out[size_t(t) * 64 + 3])), t >= 17) << t;
  }
}

TEST_P(CpuAttention, AppendsTheNewestTokensFirst) {
  Random random(9);
  const Heads heads{4, 2, 16};
  const Sequence s = random_sequence(random, heads, 40);
  PagedBatch batch(random, heads, {{&s, 40, 1}, {&s, 17, 5}, {&s, 1, 1}});
  std::vector<Half> unused;
  AttentionArgs a = batch.args(0.3f, unused);
  const NewestTokens tokens(random, a, batch.cache_size());
  const auto run = [&](bool together) {
    NewestTokens own = tokens;
    auto out = nan_halves(size_t(a.n) * 64);
    a.qkv = own.qkv.data();
    a.kv = {own.k.data(), own.v.data()};
    a.out = out.data();
    const RopeAppendArgs append{
        own.qkv.data(), own.positions.data(), own.slots.data(), own.inv_freq.data(), a.n,
        a.q_heads,      a.kv_heads,           a.head_dim,       a.block_size,        a.kv};
    a.append = together ? &append : nullptr;
    if (!together) ops_.rope_append(context_, append);
    ops_.attention(context_, a);
    return std::tuple(out, own.k, own.v);
  };
  const auto apart = run(false);
  EXPECT_EQ(run(true), apart);
  for (const Half& x : std::get<0>(apart)) ASSERT_TRUE(std::isfinite(to_float(x)));
}

TEST_P(CpuAttention, EmptyBatchDoesNothing) {
  const int32_t start = 0;
  EXPECT_NO_THROW(ops_.attention(context_, {.qkv = nullptr,
                                            .seqs = {.count = 0, .query_start = &start},
                                            .kv = {},
                                            .n = 0,
                                            .q_heads = 1,
                                            .kv_heads = 1,
                                            .head_dim = 64,
                                            .block_size = 16,
                                            .scale = 1,
                                            .out = nullptr}));
}

TEST_P(CpuAttention, RefusesImpossibleShapes) {
  Random random(8);
  const Heads heads{3, 1, 8};
  const Sequence s = random_sequence(random, heads, 2);
  PagedBatch batch(random, heads, {{&s, 2, 2}});
  std::vector<Half> out(3 * 8 * 2);
  for (const auto change :
       {+[](AttentionArgs& a) { a.head_dim = 100000; }, +[](AttentionArgs& a) { a.kv_heads = 2; },
        +[](AttentionArgs& a) { a.block_size = 0; }}) {
    AttentionArgs args = batch.args(1, out);
    change(args);
    EXPECT_THROW(ops_.attention(context_, args), Error);
  }
}

}  // namespace
}  // namespace spinfer::test
