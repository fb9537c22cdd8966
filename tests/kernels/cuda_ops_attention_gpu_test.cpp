// CUDA attention against the double-precision reference; on a deterministic device bit for bit independent of
// batch and chunk. Skipped where there is no GPU.
#include "kernels/check.h"
#include "kernels/cuda/attention.h"
#include "tests/kernels/cuda_ops.h"
#include "tests/kernels/paged_batch.h"

namespace spinfer::test {
namespace {

class CudaAttention : public CudaOps {
 protected:
  /// [n][q heads · dim]. `max_query_len` 0: the bound the batch states.
  std::vector<Half> attend(PagedBatch& batch, float scale, int max_query_len = 0) {
    return attend_on(gpu(), batch, scale, max_query_len);
  }

  using Kernel = void(DeviceContext& context, const AttentionArgs& args);

  std::vector<Half> attend_on(Device& device, PagedBatch& batch, float scale, int max_query_len = 0,
                              Kernel* kernel = nullptr) {
    std::vector<Half> unused;
    AttentionArgs a = batch.args(scale, unused);
    const int width = (a.q_heads + 2 * a.kv_heads) * a.head_dim;
    const auto copy = [&](const auto* host, size_t count) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(host)>>;
      return on_gpu(std::vector<T>(host, host + count));
    };
    const size_t sequences = size_t(a.seqs.count);
    const auto qkv = copy(a.qkv, size_t(a.n) * width);
    const auto k = copy(static_cast<const Half*>(a.kv.k), batch.cache_size()),
               v = copy(static_cast<const Half*>(a.kv.v), batch.cache_size());
    const auto start = copy(a.seqs.query_start, sequences + 1),
               context_len = copy(a.seqs.context_len, sequences),
               table = copy(a.seqs.block_table, sequences * size_t(a.seqs.max_blocks));
    const auto out = on_gpu(nan_halves(size_t(a.n) * a.q_heads * a.head_dim));
    a.qkv = qkv.data();
    a.kv = {k.data(), v.data()};
    a.seqs.query_start = start.data();
    a.seqs.context_len = context_len.data();
    a.seqs.block_table = table.data();
    if (max_query_len) a.seqs.max_query_len = max_query_len;
    a.out = out.data();
    ops().synchronize(context());  // `device` may have a stream of its own
    (kernel ? *kernel : device.ops().attention)(device.context(), a);
    device.ops().synchronize(device.context());
    return out.get();
  }

  /// Error of our kernels beyond the reference's bound: prefill rounds weights to fp16, exp2 has 2 units of
  /// error.
  static Tolerance tolerance(double error) { return half_rounding_after(4 * error + 4 * 0x1p-11); }

  void expect_reference(const Heads& heads, const std::vector<Chunk>& chunks, float scale, uint64_t seed,
                        Kernel* kernel = nullptr) {
    Random random(seed);
    PagedBatch batch(random, heads, chunks);
    Reference want;
    for (const Chunk& chunk : chunks) {
      const Reference one = reference(heads, chunk, double(scale));
      want.out.insert(want.out.end(), one.out.begin(), one.out.end());
      want.error = std::max(want.error, one.error);
    }
    EXPECT_TRUE(near(attend_on(gpu(), batch, scale, 0, kernel), want.out, tolerance(want.error)))
        << heads.q << "/" << heads.kv << " × " << heads.dim << " block " << heads.block_size;
  }
};

TEST_F(CudaAttention, MatchesTheReference) {
  Random random(1);
  for (const int dim : {8, 16, 64, 80, 96, 128, 192, 256}) {
    for (const Heads heads : {Heads{1, 1, dim}, Heads{4, 2, dim}, Heads{8, 1, dim}, Heads{11, 1, dim}}) {
      const Sequence a = random_sequence(random, heads, 37), b = random_sequence(random, heads, 1),
                     c = random_sequence(random, heads, 150), d = random_sequence(random, heads, 64);
      expect_reference(heads, {{&a, 37, 37}, {&b, 1, 1}, {&c, 150, 1}, {&d, 60, 13}, {&a, 33, 1}},
                       1 / std::sqrt(float(dim)), 10);
    }
  }
}

TEST_F(CudaAttention, MatchesTheReferenceOnOddSizes) {
  Random random(2);
  for (const Heads heads :
       {Heads{2, 1, 7, 5}, Heads{40, 1, 20, 16}, Heads{3, 3, 1, 1}, Heads{2, 2, 33, 64}, Heads{2, 1, 64, 24},
        Heads{4, 4, 64, 1}, Heads{2, 1, 128, 64}, Heads{2, 1, 300, 16}}) {
    const Sequence a = random_sequence(random, heads, 67);
    expect_reference(heads, {{&a, 67, 20}}, 0.3f, 11);
    expect_reference(heads, {{&a, 67, 1}, {&a, 20, 20}}, 0.3f, 12);
  }
}

TEST_F(CudaAttention, LongContextsAreSplitRight) {
  Random random(3);
  for (const Heads heads : {Heads{4, 1, 64}, Heads{2, 2, 128}, Heads{8, 1, 80}, Heads{3, 1, 96}}) {
    std::vector<Sequence> sequences;
    std::vector<Chunk> chunks;
    for (const int context : {64, 65, 127, 129, 255, 256, 257, 511, 513, 2049})
      sequences.push_back(random_sequence(random, heads, context));
    for (const Sequence& s : sequences) chunks.push_back({&s, s.context, 1});
    expect_reference(heads, chunks, 0.1f, 13);
    expect_reference(heads, {{&sequences[9], 2049, 150}, {&sequences[8], 300, 300}}, 0.1f, 14);
  }
}

TEST_F(CudaAttention, VeryLongContextsAreSplitRight) {
  Random random(8);
  const Heads heads{8, 1, 64};
  const Sequence s = random_sequence(random, heads, 17000);
  expect_reference(heads, {{&s, 17000, 1}, {&s, 4097, 1}, {&s, 16384, 1}, {&s, 9001, 1}}, 0.1f, 15);
}

TEST_F(CudaAttention, BlocksServeSeveralSplits) {
  Random random(9);
  const Heads heads{32, 32,
                    64};  // so many pairs of sequence and head that a pair gets fewer blocks than splits
  const Sequence s = random_sequence(random, heads, 4500);
  expect_reference(heads, std::vector<Chunk>(6, {&s, 4500, 1}), 0.1f, 16);
}

TEST_F(CudaAttention, ManySequencesAreServedInPieces) {
  Random random(10);
  const Heads heads{64, 64, 8};
  const Sequence s = random_sequence(random, heads, 70);
  std::vector<Chunk> chunks;
  for (int i = 0; i < 150; ++i) chunks.push_back({&s, 1 + i % 70, 1});
  expect_reference(heads, chunks, 0.3f, 17);
}

TEST_F(CudaAttention, AnyBlockSizeAndLongPrompts) {
  Random random(11);
  for (const Heads heads :
       {Heads{2, 1, 128, 32}, Heads{2, 2, 72, 64}, Heads{1, 1, 40, 16}, Heads{2, 1, 104, 256}}) {
    const Sequence a = random_sequence(random, heads, 600), b = random_sequence(random, heads, 129);
    expect_reference(heads, {{&a, 600, 600}, {&b, 129, 129}, {&a, 513, 3}, {&b, 128, 2}, {&a, 385, 1}}, 0.15f,
                     18);
  }
}

TEST_F(CudaAttention, SurvivesLargeScores) {
  Random random(4);
  const Heads heads{2, 1, 64};
  Sequence s = random_sequence(random, heads, 300);
  for (int t = 0; t < s.context; ++t)
    for (int i = 0; i < heads.dim; ++i)
      s.k[size_t(t) * heads.dim + i] = to_half(float(t) * (i % 2 ? 1.5f : 1.0f));
  for (Half& q : s.q) q = to_half(2 + std::abs(to_float(q)));
  // Neighbouring scores differ by more than 160: each token sees only itself.
  std::vector<Half> want;
  for (int t = 0; t < s.context; ++t)
    for (int head = 0; head < 2; ++head)
      want.insert(want.end(), &s.v[size_t(t) * heads.dim], &s.v[size_t(t) * heads.dim] + heads.dim);
  PagedBatch prefill(random, heads, {{&s, 300, 300}}), decode(random, heads, {{&s, 300, 1}});
  // A lone weight is 1 up to the rounding of the score (2⁻⁹ here); prefill rounds it to fp16 before it is
  // divided by.
  EXPECT_TRUE(near(attend(prefill, 1.0f), doubles(want), {0, 0x1.01p-10}));
  EXPECT_EQ(attend(decode, 1.0f), std::vector<Half>(want.end() - 128, want.end()));
}

TEST_F(CudaAttention, ChunkedPrefillEqualsWholePrefill) {
  Random random(5);
  for (const Heads heads : {Heads{4, 4, 64}, Heads{8, 2, 80}, Heads{2, 1, 128}}) {
    const Sequence s = random_sequence(random, heads, 300);
    PagedBatch all(random, heads, {{&s, 300, 300}});
    const auto whole = attend(all, 0.125f);
    for (const std::vector<int>& ends :
         {std::vector<int>{2, 4, 19, 64, 66, 300}, {128, 256, 300}, {298, 300}}) {
      std::vector<Half> pieces;
      int begin = 0;
      for (const int end : ends) {
        PagedBatch chunk(random, heads, {{&s, end, end - begin}});
        const auto piece = attend(chunk, 0.125f);
        pieces.insert(pieces.end(), piece.begin(), piece.end());
        begin = end;
      }
      EXPECT_EQ(pieces, whole) << heads.dim;
    }
  }
}

TEST_F(CudaAttention, DeterministicBatchEqualsEachSequenceAlone) {
  Device device(gpu().ops(), DeviceOptions{.deterministic = true});
  Random random(6);
  for (const Heads heads : {Heads{8, 2, 64}, Heads{4, 4, 128}, Heads{8, 1, 96}}) {
    std::vector<Sequence> sequences;
    for (const int context : {1, 16, 17, 700, 33})
      sequences.push_back(random_sequence(random, heads, context));
    std::vector<Chunk> chunks;
    for (const Sequence& s : sequences) chunks.push_back({&s, s.context, std::min(s.context, 20)});
    chunks.push_back({&sequences[3], 699, 1});
    chunks.push_back({&sequences[2], 17, 1});
    PagedBatch together(random, heads, chunks);
    const auto batch = attend_on(device, together, 0.125f);
    std::vector<Half> alone;
    for (const Chunk& chunk : chunks) {
      PagedBatch single(random, heads, {chunk});
      const auto one = attend_on(device, single, 0.125f, chunk.queries);
      alone.insert(alone.end(), one.begin(), one.end());
    }
    EXPECT_EQ(batch, alone) << heads.dim;
  }
}

// What a GPU older than Hopper would run, here on any.
TEST_F(CudaAttention, PortablePrefillMatchesTheReference) {
  Kernel* const portable = [](DeviceContext& opaque, const AttentionArgs& a) {
    cuda::Context& context = cuda::context_of(opaque);
    context.activate();
    cuda::attention_prefill(context, cuda::attention_task(a), a.seqs.count,
                            std::min(a.seqs.max_query_len, a.n));
  };
  Random random(14);
  for (const Heads heads :
       {Heads{4, 2, 64}, Heads{2, 1, 80}, Heads{2, 2, 96}, Heads{4, 1, 128}, Heads{1, 1, 24, 32}}) {
    const Sequence a = random_sequence(random, heads, 300), b = random_sequence(random, heads, 37);
    expect_reference(heads, {{&a, 300, 300}, {&b, 37, 5}, {&a, 200, 64}, {&a, 129, 1}}, 0.15f, 19, portable);
  }
}

TEST_F(CudaAttention, DeterministicTokensDoNotDependOnTheirChunk) {
  Device device(gpu().ops(), DeviceOptions{.deterministic = true});
  Random random(12);
  for (const Heads heads : {Heads{4, 4, 64}, Heads{8, 2, 80}, Heads{2, 1, 128}, Heads{2, 1, 96},
                            Heads{2, 1, 192}, Heads{2, 2, 20}}) {
    const Sequence s = random_sequence(random, heads, 300);
    PagedBatch all(random, heads, {{&s, 300, 300}});
    const auto whole = attend_on(device, all, 0.125f);
    const size_t width = size_t(heads.q) * heads.dim;
    for (const int end : {1, 2, 64, 128, 129, 255, 300}) {
      PagedBatch alone(random, heads, {{&s, end, 1}}),
          among(random, heads, {{&s, 200, 31}, {&s, end, 1}, {&s, 7, 7}});
      const std::vector<Half> want(whole.begin() + std::ptrdiff_t((end - 1) * width),
                                   whole.begin() + std::ptrdiff_t(end * width));
      EXPECT_EQ(attend_on(device, alone, 0.125f, 1), want) << heads.dim << " token " << end;
      const auto batch = attend_on(device, among, 0.125f);
      EXPECT_EQ(std::vector<Half>(batch.begin() + std::ptrdiff_t(31 * width),
                                  batch.begin() + std::ptrdiff_t(32 * width)),
                want)
          << heads.dim << " token " << end;
    }
  }
}

TEST_F(CudaAttention, AppendingInTheSamePassChangesNothing) {
  Random random(15);
  for (const Heads heads :
       {Heads{4, 2, 64}, Heads{8, 1, 80}, Heads{3, 3, 96}, Heads{32, 4, 128}, Heads{20, 1, 128, 32},
        Heads{2, 1, 48}, Heads{2, 1, 256}, Heads{2, 1, 72}, Heads{2, 1, 20}}) {
    std::vector<Sequence> sequences;
    std::vector<Chunk> chunks;
    for (const int context : {1, 16, 17, 64, 65, 300, 1500})
      sequences.push_back(random_sequence(random, heads, context));
    for (const Sequence& s : sequences) chunks.push_back({&s, s.context, 1});
    for (const int first_chunk : {1, 20}) {  // all of one token, or one of several
      if (first_chunk > 1) chunks[5].queries = first_chunk;
      for (const bool rotates : {true, false}) {
        PagedBatch batch(random, heads, chunks);
        std::vector<Half> unused;
        AttentionArgs a = batch.args(0.1f, unused);
        a.seqs.max_query_len = first_chunk;
        const NewestTokens tokens(random, a, batch.cache_size());
        const auto start = on_gpu(
                       std::vector<int32_t>(a.seqs.query_start, a.seqs.query_start + a.seqs.count + 1)),
                   context_len =
                       on_gpu(std::vector<int32_t>(a.seqs.context_len, a.seqs.context_len + a.seqs.count)),
                   table = on_gpu(std::vector<int32_t>(
                       a.seqs.block_table, a.seqs.block_table + a.seqs.count * a.seqs.max_blocks)),
                   positions = on_gpu(tokens.positions), slots = on_gpu(tokens.slots);
        const auto inv_freq = on_gpu(tokens.inv_freq);
        a.seqs.query_start = start.data();
        a.seqs.context_len = context_len.data();
        a.seqs.block_table = table.data();
        struct Result {
          std::vector<Half> out, k, v;
        };
        const auto run = [&](bool together) {
          const auto qkv = on_gpu(tokens.qkv), k = on_gpu(tokens.k), v = on_gpu(tokens.v),
                     out = on_gpu(nan_halves(size_t(a.n) * a.q_heads * a.head_dim));
          a.qkv = qkv.data();
          a.kv = {k.data(), v.data()};
          a.out = out.data();
          const RopeAppendArgs append{qkv.data(),   positions.data(),
                                      slots.data(), rotates ? inv_freq.data() : nullptr,
                                      a.n,          a.q_heads,
                                      a.kv_heads,   a.head_dim,
                                      a.block_size, a.kv};
          a.append = together ? &append : nullptr;
          if (!together) ops().rope_append(context(), append);
          ops().attention(context(), a);
          return Result{out.get(), k.get(), v.get()};
        };
        const Result apart = run(false), together = run(true);
        EXPECT_EQ(together.out, apart.out) << heads.q << "/" << heads.kv << " × " << heads.dim;
        EXPECT_EQ(together.k, apart.k) << heads.dim;
        EXPECT_EQ(together.v, apart.v) << heads.dim;
        for (const Half& x : apart.out) ASSERT_TRUE(std::isfinite(to_float(x)));
      }
    }
  }
}

TEST_F(CudaAttention, NanInTheContextShows) {
  Random random(7);
  const Heads heads{1, 1, 64};
  for (const bool in_key : {true, false}) {
    for (const int queries : {1, 20}) {
      Sequence s = random_sequence(random, heads, 40);
      (in_key ? s.k : s.v)[17 * 64 + 3] = kNanHalf;
      PagedBatch batch(random, heads, {{&s, 40, queries}});
      const auto out = attend(batch, 0.125f);
      for (int t = 0; t < queries; ++t) EXPECT_TRUE(std::isnan(to_float(out[size_t(t) * 64 + 3]))) << t;
    }
  }
}

TEST_F(CudaAttention, PaddingRowsAreLeftAlone) {
  Device deterministic(gpu().ops(), DeviceOptions{.deterministic = true});
  Random random(13);
  for (const Heads heads : {Heads{4, 2, 64}, Heads{2, 2, 7}}) {
    const Sequence s = random_sequence(random, heads, 40);
    for (Device* device : {&gpu(), &deterministic}) {
      PagedBatch batch(random, heads, {{&s, 40, 1}, {&s, 0, 1}, {&s, 17, 1}, {&s, 0, 1}});
      PagedBatch without(random, heads, {{&s, 40, 1}, {&s, 17, 1}});
      const auto padded = attend_on(*device, batch, 0.125f), want = attend_on(*device, without, 0.125f);
      const size_t width = size_t(heads.q) * heads.dim;
      const auto row = [&](const std::vector<Half>& rows, size_t i) {
        return std::vector<Half>(rows.begin() + std::ptrdiff_t(i * width),
                                 rows.begin() + std::ptrdiff_t((i + 1) * width));
      };
      EXPECT_EQ(row(padded, 0), row(want, 0));
      EXPECT_EQ(row(padded, 2), row(want, 1));
      EXPECT_EQ(row(padded, 1), nan_halves(width));
    }
  }
}

TEST_F(CudaAttention, EmptyBatchAndImpossibleShapes) {
  AttentionArgs a{.qkv = nullptr,
                  .seqs = {},
                  .kv = {},
                  .n = 0,
                  .q_heads = 1,
                  .kv_heads = 1,
                  .head_dim = 64,
                  .block_size = 16,
                  .scale = 1,
                  .out = nullptr};
  EXPECT_NO_THROW(ops().attention(context(), a));
  for (const auto change :
       {+[](AttentionArgs& x) { x.head_dim = 100000; }, +[](AttentionArgs& x) { x.kv_heads = 2; },
        +[](AttentionArgs& x) { x.block_size = 0; }}) {
    AttentionArgs bad = a;
    change(bad);
    EXPECT_THROW(ops().attention(context(), bad), Error);
  }
}

}  // namespace
}  // namespace spinfer::test
