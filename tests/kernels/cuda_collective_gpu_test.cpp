// Collectives between GPUs: sums in rank order rounded once, uneven columns, waking ranks that wait. Skipped
// where there are fewer than two GPUs; those over peer memory need only one, which then is every rank's.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/peer_group.h"
#include "tests/kernels/cuda_ops.h"

namespace spinfer::test {
namespace {

class CudaCollective : public testing::Test {
 protected:
  void SetUp() override {
    const Backend* cuda = cuda_backend();
    const int gpus = cuda ? cuda->device_count() : 0;
    if (gpus < 2) GTEST_SKIP() << "needs two CUDA devices, has " << gpus;
    std::vector<DeviceContext*> contexts;
    for (int rank = 0; rank < std::min(gpus, 4); ++rank) {
      devices_.push_back(std::make_unique<Device>(*cuda, DeviceOptions{.ordinal = rank}));
      contexts.push_back(&devices_.back()->context());
    }
    cuda->connect(contexts);
  }
  int world() const { return int(devices_.size()); }

  /// body(rank, device) on a thread each.
  void on_all(const std::function<void(int, Device&)>& body) {
    std::vector<std::thread> threads;
    for (int rank = 0; rank < world(); ++rank)
      threads.emplace_back([&, rank] {
        try {
          body(rank, *devices_[size_t(rank)]);
        } catch (const std::exception& error) {
          ADD_FAILURE() << "rank " << rank << ": " << error.what();
        }
      });
    for (std::thread& thread : threads) thread.join();
  }

  std::vector<std::unique_ptr<Device>> devices_;
};

/// What each rank brings, and the sum as the contract has it.
struct Summands {
  std::vector<std::vector<Half>> parts;
  std::vector<Half> want;

  Summands(Random& random, int world, size_t count, float scale = 1) : want(count) {
    for (int rank = 0; rank < world; ++rank) parts.push_back(random.halves(count, scale));
    for (size_t i = 0; i < count; ++i) {
      float sum = 0;
      for (const auto& part : parts) sum += to_float(part[i]);
      want[i] = to_half(sum);
    }
  }
};

TEST_F(CudaCollective, AllReduceSumsInRankOrderAndRoundsOnce) {
  Random random(1);
  const std::pair<size_t, float> cases[] = {
      {1, 1}, {777, 1}, {8 * 8192, 1}, {1 << 19, 1}, {1000003, 1}, {3 << 20, 1000}, {(3 << 20) + 5, 1e-6f}};
  for (const auto& [count, scale] : cases) {
    const Summands summands(random, world(), count, scale);
    const auto& [parts, want] = summands;
    on_all([&](int rank, Device& device) {
      const Guarded<Half> x(device, parts[size_t(rank)]);
      device.ops().all_reduce(device.context(), x.data(), int64_t(count));
      const std::vector<Half> got = x.get();
      EXPECT_TRUE(std::ranges::equal(got, want, {}, to_float, to_float))
          << "rank " << rank << " count " << count;
    });
  }
}

TEST_F(CudaCollective, AllGatherColumnsOfDifferentWidths) {
  const int n = 5;
  int64_t total = 0;
  for (int rank = 0; rank < world(); ++rank) total += 100 + 37 * rank;
  std::vector<float> want(size_t(n * total));
  for (size_t i = 0; i < want.size(); ++i) want[i] = float(i);
  for (int round = 0; round < 3; ++round) {
    on_all([&](int rank, Device& device) {
      const int64_t cols = 100 + 37 * rank, begin = 100 * rank + 37 * rank * (rank - 1) / 2;
      std::vector<float> mine;
      for (int row = 0; row < n; ++row)
        for (int64_t c = 0; c < cols; ++c) mine.push_back(want[size_t(row * total + begin + c)]);
      const Guarded<float> shard(device, mine), out(device, std::vector<float>(want.size(), NAN));
      device.ops().all_gather_cols(device.context(), shard.data(), n, cols, out.data(), total);
      EXPECT_TRUE(out.get() == want) << "rank " << rank;
    });
  }
}

/// Work of one rank's device never ends: no rank waits for it, though NCCL may.
TEST_F(CudaCollective, AnAbortFreesTheRanksOfADeviceThatHangs) {
  std::atomic<bool> stuck = true;
  const auto spin = [](void* flag) {
    while (*static_cast<std::atomic<bool>*>(flag)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  std::thread aborting([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    devices_[0]->ops().abort_group(devices_[0]->context(), "the watchdog barked");
  });
  const auto start = std::chrono::steady_clock::now();
  on_all([&](int rank, Device& device) {
    const Guarded<Half> x(device, std::vector<Half>(1000));
    device.ops().synchronize(device.context());
    if (rank == 1) {
      ASSERT_EQ(cudaLaunchHostFunc(cuda::context_of(device.context()).stream(), spin, &stuck), cudaSuccess);
    }
    try {
      device.ops().all_reduce(device.context(), x.data(), 1000);
      device.ops().synchronize(device.context());
      ADD_FAILURE() << "rank " << rank << " saw no error";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("the watchdog barked"), std::string::npos) << error.what();
    }
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(2)) << "rank " << rank;
    if (rank == 1) stuck = false;  // so that its memory can be freed
  });
  stuck = false;
  aborting.join();
}

class CudaPeerGroup : public CudaOps {};

TEST_F(CudaPeerGroup, SumsManyTensorsOfChangingSizes) {
  for (const int world : {2, 3, 8}) {
    std::vector<std::unique_ptr<Device>> ranks;
    for (int rank = 0; rank < world; ++rank)
      ranks.push_back(std::make_unique<Device>(*cuda_backend(), DeviceOptions{.ordinal = 0}));
    const std::vector<int> ordinals(size_t(world), 0);
    ASSERT_TRUE(cuda::PeerGroup::reachable(ordinals));
    const cuda::PeerGroup group(ordinals);
    Random random{uint64_t(world)};
    for (const size_t count :
         {size_t{8}, size_t{4096}, size_t{1} << 19, size_t{8}, size_t{24}, size_t{131072}}) {
      const Summands summands(random, world, count);
      std::vector<std::unique_ptr<Guarded<Half>>> x;
      for (int rank = 0; rank < world; ++rank)
        x.push_back(std::make_unique<Guarded<Half>>(*ranks[size_t(rank)], summands.parts[size_t(rank)]));
      for (int rank = 0; rank < world; ++rank) {
        ASSERT_TRUE(group.can_sum(x[size_t(rank)]->data(), int64_t(count)));
        group.sum(cuda::context_of(ranks[size_t(rank)]->context()), rank, x[size_t(rank)]->data(),
                  int64_t(count));
      }
      for (int rank = 0; rank < world; ++rank)
        EXPECT_TRUE(x[size_t(rank)]->get() == summands.want)
            << world << " ranks, rank " << rank << ", " << count;
    }
  }
}

/// A residual stream, each rank's part of what joins it, and the norm of the sum by one rank alone.
class SummedNorm {
 public:
  SummedNorm(Device& device, Random& random, int world, int n, int d)
      : n_(n),
        d_(d),
        parts(random, world, size_t(n) * size_t(d)),
        h(random.halves(size_t(n) * size_t(d))),
        gain(random.halves(size_t(d))) {
    const Guarded<Half> stream(device, h), delta(device, parts.want), gains(device, gain), out(device, h);
    device.ops().add_norm(device.context(), args(stream, delta, gains, out, false));
    want_h = stream.get();
    want = out.get();
  }
  AddNormArgs args(const Guarded<Half>& stream, const Guarded<Half>& delta, const Guarded<Half>& gains,
                   const Guarded<Half>& out, bool summed) const {
    return {.h = stream.data(),
            .delta = delta.data(),
            .kind = NormKind::rms,
            .gain = gains.data(),
            .bias = nullptr,
            .eps = 1e-5f,
            .n = n_,
            .d = d_,
            .out = out.data(),
            .sum_delta = summed};
  }

 private:
  int n_, d_;

 public:
  const Summands parts;
  const std::vector<Half> h, gain;
  std::vector<Half> want_h, want;
};

/// On one rank's device.
struct NormOnRank {
  Guarded<Half> stream, delta, gains, out;
  NormOnRank(Device& device, const SummedNorm& norm, int rank)
      : stream(device, norm.h),
        delta(device, norm.parts.parts[size_t(rank)]),
        gains(device, norm.gain),
        out(device, norm.h) {}
};

constexpr std::pair<int, int> kNormShapes[] = {{1, 8},     {7, 128},   {16, 8192}, {3, 5120},
                                               {32, 8192}, {2, 12288}, {64, 1024}, {5, 7168}};

TEST_F(CudaPeerGroup, AddNormSumsAmongOtherCalls) {
  cuda::load_summing_norms();
  for (const int world : {2, 3, 8}) {
    std::vector<std::unique_ptr<Device>> ranks;
    for (int rank = 0; rank < world; ++rank)
      ranks.push_back(std::make_unique<Device>(*cuda_backend(), DeviceOptions{.ordinal = 0}));
    const cuda::PeerGroup group(std::vector<int>(size_t(world), 0));
    Random random{uint64_t(world)};
    const Summands by_lines(random, world, 4096), by_slots(random, world, (1 << 18) + 8);
    int summed = 0;
    for (const auto& [n, d] : kNormShapes) {
      const SummedNorm norm(gpu(), random, world, n, d);
      const bool before = summed % 2, after = summed % 3;
      std::vector<std::unique_ptr<NormOnRank>> mine;
      std::vector<std::unique_ptr<Guarded<Half>>> lines, slots;
      for (int rank = 0; rank < world; ++rank) {
        Device& device = *ranks[size_t(rank)];
        mine.push_back(std::make_unique<NormOnRank>(device, norm, rank));
        lines.push_back(std::make_unique<Guarded<Half>>(device, by_lines.parts[size_t(rank)]));
        slots.push_back(std::make_unique<Guarded<Half>>(device, by_slots.parts[size_t(rank)]));
      }
      const auto args_of = [&](int rank) {
        const NormOnRank& on = *mine[size_t(rank)];
        return norm.args(on.stream, on.delta, on.gains, on.out, true);
      };
      const bool takes = cuda::add_norm_sums(group, args_of(0));
      EXPECT_EQ(takes, d <= 8192 && int64_t{n} * d * 2 * (world - 1) <= cuda::PeerGroup::kMostLineBytes);
      if (!takes) continue;
      ++summed;
      // Call by call: a rank's next kernel is placed while this one waits for the other ranks, whose own
      // might find no room beside it on the one GPU.
      const auto on_ranks = [&](const auto& call) {
        for (int rank = 0; rank < world; ++rank) call(rank, cuda::context_of(ranks[size_t(rank)]->context()));
      };
      if (before) {
        on_ranks([&](int rank, cuda::Context& context) {
          group.sum(context, rank, lines[size_t(rank)]->data(), 4096);
        });
      }
      on_ranks([&](int rank, cuda::Context& context) {
        cuda::add_norm(cuda::opaque(context), args_of(rank), &group, rank);
      });
      if (after) {
        on_ranks([&](int rank, cuda::Context& context) {
          group.sum(context, rank, slots[size_t(rank)]->data(), (1 << 18) + 8);
        });
      }
      for (int rank = 0; rank < world; ++rank) {
        SCOPED_TRACE(testing::Message() << world << " ranks, rank " << rank << ", " << n << " x " << d);
        EXPECT_TRUE(mine[size_t(rank)]->stream.get() == norm.want_h);
        EXPECT_TRUE(mine[size_t(rank)]->out.get() == norm.want);
        if (before) {
          EXPECT_TRUE(lines[size_t(rank)]->get() == by_lines.want);
        }
        if (after) {
          EXPECT_TRUE(slots[size_t(rank)]->get() == by_slots.want);
        }
      }
    }
    EXPECT_GE(summed, 4);
  }
}

TEST_F(CudaCollective, AddNormSumsItsDelta) {
  Random random(3);
  for (const auto& [n, d] : {std::pair(1, 8), {16, 8192}, {33, 8192}, {3, 5120}, {7, 100}, {130, 4096}}) {
    const SummedNorm norm(*devices_[0], random, world(), n, d);
    for (int round = 0; round < 10; ++round) {
      on_all([&, n = n, d = d](int rank, Device& device) {
        const NormOnRank on(device, norm, rank);
        device.ops().add_norm(device.context(), norm.args(on.stream, on.delta, on.gains, on.out, true));
        EXPECT_TRUE(on.stream.get() == norm.want_h) << "rank " << rank << ", " << n << " x " << d;
        EXPECT_TRUE(on.out.get() == norm.want) << "rank " << rank << ", " << n << " x " << d;
      });
    }
  }
}

TEST_F(CudaPeerGroup, TakesOnlyWhatFitsItsSlots) {
  const Guarded<Half> x = on_gpu(std::vector<Half>(32));
  const cuda::PeerGroup two(std::vector<int>(2, 0)), four(std::vector<int>(4, 0));
  EXPECT_TRUE(two.can_sum(x.data(), 16));
  EXPECT_FALSE(two.can_sum(x.data(), 12)) << "not whole vectors";
  EXPECT_FALSE(two.can_sum(x.data() + 1, 16)) << "not aligned";
  EXPECT_TRUE(two.can_sum(x.data(), 1 << 19));
  EXPECT_FALSE(two.can_sum(x.data(), (1 << 19) + 8)) << "NCCL is faster";
  EXPECT_TRUE(four.can_sum(x.data(), 1 << 20));
  EXPECT_FALSE(four.can_sum(x.data(), 1 << 21)) << "too many bytes from four ranks";
}

TEST_F(CudaPeerGroup, GathersColumnsOfDifferentWidths) {
  const std::vector<int64_t> columns{64, 4, 1000};
  const std::vector<int> ordinals(columns.size(), 0);
  const cuda::PeerGroup group(ordinals);
  std::vector<std::unique_ptr<Device>> ranks;
  for (size_t rank = 0; rank < columns.size(); ++rank)
    ranks.push_back(std::make_unique<Device>(*cuda_backend(), DeviceOptions{.ordinal = 0}));
  for (const int n : {1, 37, 200}) {
    const int64_t total = 1068;
    std::vector<float> want(size_t(n * total));
    for (size_t i = 0; i < want.size(); ++i) want[i] = float(i);
    std::vector<std::unique_ptr<Guarded<float>>> shards, outs;
    int64_t begin = 0;
    for (size_t rank = 0; rank < columns.size(); ++rank) {
      std::vector<float> mine;
      for (int row = 0; row < n; ++row)
        for (int64_t c = 0; c < columns[rank]; ++c) mine.push_back(want[size_t(row * total + begin + c)]);
      begin += columns[rank];
      shards.push_back(std::make_unique<Guarded<float>>(*ranks[rank], mine));
      outs.push_back(std::make_unique<Guarded<float>>(*ranks[rank], std::vector<float>(want.size(), NAN)));
    }
    for (size_t rank = 0; rank < columns.size(); ++rank) {
      ASSERT_TRUE(cuda::PeerGroup::can_gather(shards[rank]->data(), outs[rank]->data(), n, columns));
      group.gather(cuda::context_of(ranks[rank]->context()), int(rank), shards[rank]->data(), n, columns,
                   outs[rank]->data());
    }
    for (const auto& out : outs) EXPECT_TRUE(out->get() == want) << n;
  }
  const Guarded<float> x = on_gpu(std::vector<float>(8));
  EXPECT_FALSE(cuda::PeerGroup::can_gather(x.data(), x.data(), 1, std::vector<int64_t>{3, 4}));
  EXPECT_FALSE(cuda::PeerGroup::can_gather(x.data(), x.data() + 1, 1, std::vector<int64_t>{4, 4}));
  EXPECT_FALSE(cuda::PeerGroup::can_gather(x.data(), x.data(), 1 << 20, std::vector<int64_t>{4, 4}));
}

TEST_F(CudaPeerGroup, AbortEndsAWaitForARankThatNeverComes) {
  const std::vector<int> ordinals{0, 0};
  const cuda::PeerGroup group(ordinals);
  const Guarded<Half> x = on_gpu(std::vector<Half>(64));
  group.sum(cuda::context_of(context()), 0, x.data(), 64);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const auto start = std::chrono::steady_clock::now();
  group.abort();
  ops().synchronize(context());
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

TEST_F(CudaCollective, AbortWakesARankThatWaits) {
  const auto start = std::chrono::steady_clock::now();
  on_all([&](int rank, Device& device) {
    if (rank == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
      device.ops().abort_group(device.context(), "rank 0 gave up");
      return;
    }
    const Guarded<Half> x(device, std::vector<Half>(1000));
    EXPECT_THROW(
        {
          device.ops().all_reduce(device.context(), x.data(), 1000);
          device.ops().synchronize(device.context());
        },
        Error);
  });
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

}  // namespace
}  // namespace spinfer::test
