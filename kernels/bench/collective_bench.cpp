#include "kernels/bench/collective_bench.h"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string_view>
#include <thread>

#include "kernels/device.h"

namespace spinfer {
namespace {

constexpr int kBatches = 5;
constexpr int64_t kLongBytes = int64_t{1} << 20;  // from here on a batch has few calls

using Clock = std::chrono::steady_clock;

class RankGroup {
 public:
  RankGroup(const Backend& backend, int ranks, int threads) : backend_(backend), meet_(ranks) {
    std::vector<DeviceContext*> contexts;
    for (int rank = 0; rank < ranks; ++rank) {
      devices_.push_back(std::make_unique<Device>(
          backend, DeviceOptions{.ordinal = backend.host ? 0 : rank, .threads = threads}));
      contexts.push_back(&devices_.back()->context());
    }
    backend.connect(contexts);
  }

  AllReduceRow measure(int64_t bytes) {
    const int64_t count = bytes / int64_t{sizeof(Half)};
    const int calls = bytes < kLongBytes ? 50 : 4, ranks = int(devices_.size());
    std::vector<double> samples;
    std::atomic<bool> correct = true;
    on_all([&](int rank, Device& device) {
      DeviceArray<Half> x(device, count, MemoryUse::workspace);
      const std::vector<Half> part(size_t(count), to_half(float(rank + 1)));
      const auto call = [&] { backend_.all_reduce(device.context(), x.data(), count); };
      x.upload(part.data(), count);
      call();
      const Half sum = to_half(float(ranks * (ranks + 1)) / 2);
      const std::vector<Half> got = x.download(count);
      if (!std::all_of(got.begin(), got.end(), [&](Half h) { return h == sum; })) correct = false;
      backend_.fill_zero(device.context(), x.data(), size_t(bytes));
      for (int batch = 0; batch < kBatches; ++batch) {
        backend_.synchronize(device.context());
        meet_.arrive_and_wait();
        const auto begin = Clock::now();
        for (int i = 0; i < calls; ++i) call();
        backend_.synchronize(device.context());
        const double us = std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
        if (rank == 0) samples.push_back(us / calls);
      }
    });
    std::sort(samples.begin(), samples.end());
    const double us = samples[samples.size() / 2];
    return {bytes, us, 2.0 * (ranks - 1) / ranks * double(bytes) / us * 1e-3, correct};
  }

 private:
  /// body on a thread per rank. The first error wakes the others (collectives throw, `meet_` lets them pass)
  /// and is rethrown.
  void on_all(const std::function<void(int, Device&)>& body) {
    std::mutex mutex;
    std::exception_ptr first;
    std::vector<std::thread> threads;
    for (size_t rank = 0; rank < devices_.size(); ++rank) {
      threads.emplace_back([&, rank] {
        try {
          body(int(rank), *devices_[rank]);
        } catch (const std::exception& error) {
          {
            const std::lock_guard lock(mutex);
            if (!first) first = std::current_exception();
          }
          backend_.abort_group(devices_[rank]->context(), error.what());
          meet_.arrive_and_drop();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    if (first) std::rethrow_exception(first);
  }

  const Backend& backend_;
  std::vector<std::unique_ptr<Device>> devices_;
  std::barrier<> meet_;
};

}  // namespace

std::vector<AllReduceRow> bench_all_reduce(const Backend& backend, int ranks, int threads,
                                           const std::vector<int64_t>& sizes) {
  RankGroup group(backend, ranks, threads);
  std::vector<AllReduceRow> rows;
  for (const int64_t bytes : sizes) rows.push_back(group.measure(bytes));
  return rows;
}

}  // namespace spinfer
