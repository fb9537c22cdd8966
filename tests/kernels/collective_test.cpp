// Collectives over threads: results, order of summation, and what happens when a rank stops.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <memory>
#include <numeric>
#include <thread>

#include "kernels/check.h"
#include "tests/kernels/cpu_ops.h"

namespace spinfer::test {
namespace {

/// `world` connected devices, one thread each.
class Ranks {
 public:
  explicit Ranks(int world) {
    std::vector<DeviceContext*> contexts;
    for (int rank = 0; rank < world; ++rank) {
      devices_.push_back(std::make_unique<CpuDevice>(1));
      contexts.push_back(&devices_.back()->context());
    }
    cpu_backend().connect(contexts);
  }
  int world() const { return int(devices_.size()); }
  DeviceContext& context(int rank) { return devices_[size_t(rank)]->context(); }

  /// body(rank) on one thread per rank.
  template <class Body>
  void run(const Body& body) {
    std::vector<std::thread> threads;
    for (int rank = 0; rank < world(); ++rank) threads.emplace_back([&body, rank] { body(rank); });
    for (std::thread& thread : threads) thread.join();
  }

 private:
  std::vector<std::unique_ptr<CpuDevice>> devices_;
};

/// What a collective threw; empty if it did not.
template <class Body>
std::string error_of(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Collective, AllReduceSumsInRankOrderAndRoundsOnce) {
  for (const int world : {1, 2, 3, 4, 5}) {
    Ranks ranks(world);
    for (const int count : {0, 1, 31, 32, 33, 1000}) {
      Random random{uint64_t(count)};
      std::vector<std::vector<Half>> x;
      // Sizes far apart, so that another order or an intermediate rounding gives other bits.
      for (int rank = 0; rank < world; ++rank)
        x.push_back(random.halves(size_t(count), rank % 2 ? 1000.0f : 0.01f));
      std::vector<Half> want;
      for (int i = 0; i < count; ++i) {
        float sum = 0;
        for (int rank = 0; rank < world; ++rank) sum += to_float(x[rank][i]);
        want.push_back(to_half(sum));
      }
      ranks.run([&](int rank) { cpu_backend().all_reduce(ranks.context(rank), x[rank].data(), count); });
      for (int rank = 0; rank < world; ++rank) EXPECT_EQ(x[rank], want) << "rank " << rank << " of " << world;
    }
  }
}

TEST(Collective, AddNormSumsItsDeltaOverTheRanks) {
  constexpr int kN = 3, kD = 40;
  Ranks ranks(3);
  Random random{7};
  const auto h = random.halves(kN * kD);
  std::vector<std::vector<Half>> deltas, hs(3, h), outs(3, nan_halves(kN * kD));
  for (int rank = 0; rank < 3; ++rank) deltas.push_back(random.halves(kN * kD));
  std::vector<Half> sum, h_want = h, want = nan_halves(kN * kD);
  for (int i = 0; i < kN * kD; ++i)
    sum.push_back(to_half(to_float(deltas[0][i]) + to_float(deltas[1][i]) + to_float(deltas[2][i])));
  const auto args = [](std::vector<Half>& h, std::vector<Half>& delta, std::vector<Half>& out, bool summed) {
    return AddNormArgs{.h = h.data(),
                       .delta = delta.data(),
                       .kind = NormKind::rms,
                       .gain = nullptr,
                       .bias = nullptr,
                       .eps = 1e-5f,
                       .n = kN,
                       .d = kD,
                       .out = out.data(),
                       .sum_delta = summed};
  };
  CpuDevice alone(1);
  alone.ops().add_norm(alone.context(), args(h_want, sum, want, false));
  ranks.run([&](int rank) {
    cpu_backend().add_norm(ranks.context(rank), args(hs[rank], deltas[rank], outs[rank], true));
  });
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(hs[rank], h_want);
    EXPECT_EQ(outs[rank], want);
  }
}

TEST(Collective, AllGatherColsPutsShardsSideBySide) {
  const std::vector<std::vector<int>> splits = {{5}, {4, 4}, {64, 1, 13}, {3, 0, 2, 7}};
  for (const auto& cols : splits) {
    Ranks ranks(int(cols.size()));
    for (const int n : {0, 1, 7}) {
      int total = 0;
      for (const int c : cols) total += c;
      std::vector<float> want(size_t(n) * total);
      std::iota(want.begin(), want.end(), 1.0f);
      std::vector<std::vector<float>> shards, outs;
      int column = 0;
      for (const int c : cols) {
        auto& shard = shards.emplace_back();
        for (int i = 0; i < n; ++i)
          for (int j = 0; j < c; ++j) shard.push_back(want[size_t(i) * total + column + j]);
        column += c;
        outs.emplace_back(want.size(), NAN);
      }
      ranks.run([&](int rank) {
        cpu_backend().all_gather_cols(ranks.context(rank), shards[rank].data(), n, cols[rank],
                                      outs[rank].data(), total);
      });
      for (const auto& out : outs) EXPECT_EQ(out, want);
    }
  }
}

// Back to back, buffers reused at once: a rank that left early, or came early, would see another round's
// numbers.
TEST(Collective, RoundsDoNotMix) {
  constexpr int kWorld = 4, kRounds = 2000, kCount = 70;
  Ranks ranks(kWorld);
  std::atomic<int> wrong{0};
  ranks.run([&](int rank) {
    std::vector<Half> x(kCount);
    std::vector<float> shard(3), out(3 * kWorld);
    for (int round = 0; round < kRounds; ++round) {
      for (Half& value : x) value = to_half(float((rank + round) % 17));
      float sum = 0;
      for (int r = 0; r < kWorld; ++r) sum += float((r + round) % 17);
      cpu_backend().all_reduce(ranks.context(rank), x.data(), kCount);
      for (const Half& value : x) wrong += to_float(value) != sum;
      std::fill(shard.begin(), shard.end(), float(round * kWorld + rank));
      cpu_backend().all_gather_cols(ranks.context(rank), shard.data(), 1, 3, out.data(), 3 * kWorld);
      for (int i = 0; i < 3 * kWorld; ++i) wrong += out[i] != float(round * kWorld + i / 3);
    }
  });
  EXPECT_EQ(wrong, 0);
}

TEST(Collective, AbortWakesWaitingRanksWithTheCause) {
  Ranks ranks(3);
  std::vector<std::string> errors(3);
  const auto begin = std::chrono::steady_clock::now();
  ranks.run([&](int rank) {
    Half x[4] = {};
    if (rank == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));  // the others wait by now
      cpu_backend().abort_group(ranks.context(rank), "rank 1 ran out of luck");
      cpu_backend().abort_group(ranks.context(rank), "a second cause");
    }
    errors[rank] = error_of([&] { cpu_backend().all_reduce(ranks.context(rank), x, 4); });
  });
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
  for (const std::string& error : errors)
    EXPECT_NE(error.find("ran out of luck"), std::string::npos) << error;
  // Later collectives throw at once, on every rank.
  float shard = 0, out[3];
  EXPECT_NE(error_of([&] { cpu_backend().all_gather_cols(ranks.context(0), &shard, 1, 1, out, 3); }), "");
  EXPECT_NE(error_of([&] { cpu_backend().all_reduce(ranks.context(2), nullptr, 0); }), "");
}

// A rank that an abort wakes frees its buffer, as unwinding does; no other rank may still be using it.
TEST(Collective, AbortAtAnyMomentLeavesNoRankWithFreedMemory) {
  constexpr int kWorld = 3, kTrials = 60;
  for (int trial = 0; trial < kTrials; ++trial) {
    Ranks ranks(kWorld);
    std::atomic<int> stopped{0};
    std::thread watchdog([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(20 * trial));
      cpu_backend().abort_group(ranks.context(0), "watchdog");
    });
    ranks.run([&](int rank) {
      const std::string error = error_of([&] {
        while (true) {
          const auto x = std::make_unique<Half[]>(5000);
          cpu_backend().all_reduce(ranks.context(rank), x.get(), 5000);
        }
      });
      stopped += error.find("watchdog") != std::string::npos;
    });
    watchdog.join();
    EXPECT_EQ(stopped, kWorld);
  }
}

TEST(Collective, DifferentSizesAreAnErrorOnEveryRank) {
  Ranks ranks(2);
  std::vector<std::string> errors(2), gather_errors(2);
  ranks.run([&](int rank) {
    std::vector<Half> x(20);
    errors[rank] = error_of([&] { cpu_backend().all_reduce(ranks.context(rank), x.data(), 10 + rank); });
    std::vector<float> shard(4), out(8);
    gather_errors[rank] = error_of(
        [&] { cpu_backend().all_gather_cols(ranks.context(rank), shard.data(), 1, 3, out.data(), 8); });
  });
  for (const auto& error : errors) EXPECT_NE(error.find("elements"), std::string::npos) << error;
  for (const auto& error : gather_errors) EXPECT_NE(error.find("columns"), std::string::npos) << error;
}

TEST(Collective, ADeviceJoinsOneGroup) {
  Ranks ranks(2);
  const std::vector<DeviceContext*> contexts = {&ranks.context(0), &ranks.context(1)};
  EXPECT_THROW(cpu_backend().connect(contexts), Error);
}

TEST(Collective, AWorldOfOneNeedsNobody) {
  CpuDevice device;
  const std::vector<Half> before = {to_half(1), kNanHalf, to_half(-3)};
  auto x = before;
  device.ops().all_reduce(device.context(), x.data(), 3);
  EXPECT_EQ(x, before);
  device.ops().abort_group(device.context(), "nobody listens");
}

TEST(Collective, LeftOutDoesNothing) {
  Ranks ranks(2);
  std::vector<std::vector<Half>> x(2, {to_half(1), to_half(2)});
  std::vector<std::vector<float>> gathered(2, {-1, -1});
  for (const bool left_out : {true, false}) {
    ranks.run([&](int rank) {
      DeviceContext& context = ranks.context(rank);
      cpu_backend().leave_out(context, left_out ? 1u << int(OpKind::communication) : 0);
      cpu_backend().all_reduce(context, x[size_t(rank)].data(), 2);
      const float shard = float(rank) + 5;
      cpu_backend().all_gather_cols(context, &shard, 1, 1, gathered[size_t(rank)].data(), 2);
    });
    for (size_t rank = 0; rank < 2; ++rank) {
      EXPECT_EQ(to_float(x[rank][1]), left_out ? 2 : 4);
      EXPECT_EQ(gathered[rank], (left_out ? std::vector<float>{-1, -1} : std::vector<float>{5, 6}));
    }
  }
}

}  // namespace
}  // namespace spinfer::test
