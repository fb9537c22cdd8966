#include "kernels/bench/linear_bench.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/bench/collective_bench.h"
#include "kernels/bench/read_loop.h"
#include "kernels/check.h"
#include "kernels/thread_pool.h"

namespace spinfer {
namespace {

LinearBenchOptions quick() {
  LinearBenchOptions options;
  options.shapes = {{200, 330}, {64, 128}};
  options.tokens = {1, 8};
  options.sparsities = {0.5, 0.7};
  options.batches = 2;
  options.batch_seconds = 1e-4;
  options.cold_bytes = 1 << 20;
  return options;
}

TEST(LinearBench, MeasuresEachCombinationOnce) {
  const auto rows = bench_linear(cpu_backend(), {.threads = 2}, quick());
  ASSERT_EQ(rows.size(), 8u);
  for (const LinearBenchRow& row : rows) {
    EXPECT_GT(row.us, 0);
    EXPECT_GT(row.dense_us, 0);
    EXPECT_DOUBLE_EQ(row.speedup, row.dense_us / row.us);
    EXPECT_GT(row.gbps, 0);
    EXPECT_GT(row.read_gbps, 0);
    if (row.m == 200) {
      EXPECT_NEAR(row.floor_pct, 100 * row.gbps / row.read_gbps, 1e-9);
    } else {
      EXPECT_TRUE(std::isnan(row.floor_pct)) << "too small for a read loop";
    }
    EXPECT_GT(row.rel_error, 0) << "fp16 output cannot be exact";
    EXPECT_LT(row.rel_error, 1e-3);
    EXPECT_EQ(row.us_batches.size(), 2u);
    EXPECT_EQ(row.dense_us_batches.size(), 2u);
  }
  EXPECT_EQ(rows[0].m, 200);
  EXPECT_EQ(rows[1].n, 8);
  EXPECT_EQ(rows[2].sparsity, 0.7);
  EXPECT_EQ(rows[4].k, 128);
}

TEST(LinearBench, FloorUsesTheBandwidthGiven) {
  LinearBenchOptions options = quick();
  options.shapes = {{64, 64}};
  options.read_gbps = 123;
  for (const LinearBenchRow& row : bench_linear(cpu_backend(), {.threads = 1}, options)) {
    EXPECT_EQ(row.read_gbps, 123);
    EXPECT_NEAR(row.floor_pct, 100 * row.gbps / 123, 1e-9);
  }
}

TEST(LinearBench, RefusesSizesOutOfRange) {
  const auto with = [](auto change) {
    LinearBenchOptions options = quick();
    change(options);
    return options;
  };
  for (const LinearBenchOptions& options :
       {with([](auto& o) {
          o.shapes = {{0, 64}};
        }),
        with([](auto& o) {
          o.shapes = {{64, int64_t{1} << 40}};
        }),
        with([](auto& o) { o.tokens = {0}; }), with([](auto& o) { o.sparsities = {1.5}; }),
        with([](auto& o) { o.sparsities = {std::nan("")}; }), with([](auto& o) { o.batches = 0; })}) {
    EXPECT_THROW(bench_linear(cpu_backend(), {.threads = 1}, options), UsageError);
  }
}

TEST(LinearBench, RefusesWhatDoesNotFitBeforeAllocating) {
  LinearBenchOptions options = quick();
  options.shapes = {{int64_t{1} << 30, 1 << 20}};
  try {
    bench_linear(cpu_backend(), {.threads = 1}, options);
    FAIL() << "accepted a petabyte";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("needs"), std::string::npos) << error.what();
  }
}

TEST(LinearBench, PaperShapesAreTheThirtyOne) {
  EXPECT_EQ(paper_shapes().size(), 31u);
  EXPECT_EQ(paper_shapes().front().m, 8192);
  EXPECT_EQ(paper_shapes().back().k, 49152);
}

TEST(ReadLoop, ReadsEveryWord) {
  ThreadPool pool(3);
  for (size_t size : {0, 1, 31, 32, 33, 1000, 1023}) {
    std::vector<uint64_t> words(size);
    for (size_t i = 0; i < size; ++i) words[i] = (i + 1) * 0x9e3779b97f4a7c15ull;
    const uint64_t expected = std::accumulate(words.begin(), words.end(), uint64_t{0}, std::bit_xor<>());
    EXPECT_EQ(read_all(words, pool), expected) << size;
  }
}

TEST(BenchAllReduce, ChecksTheSumAndTimesEachSize) {
  const auto rows = bench_all_reduce(cpu_backend(), 3, 1, {8, 4096});
  ASSERT_EQ(rows.size(), 2u);
  for (const AllReduceRow& row : rows) {
    EXPECT_TRUE(row.correct);
    EXPECT_GT(row.us, 0);
    EXPECT_NEAR(row.bus_gbps, 2.0 * 2 / 3 * double(row.bytes) / row.us * 1e-3, 1e-9);
  }
  EXPECT_EQ(rows[1].bytes, 4096);
}

}  // namespace
}  // namespace spinfer
