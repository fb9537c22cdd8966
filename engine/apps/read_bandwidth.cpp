#include "engine/apps/read_bandwidth.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "engine/apps/generation_run.h"
#include "kernels/bench/read_loop.h"
#include "kernels/thread_pool.h"

namespace spinfer {
namespace {

constexpr int64_t kMostBytes = 768'000'000;
constexpr double kSeconds = 0.1;
constexpr int kMostPasses = 1000;

}  // namespace

int64_t last_level_cache_bytes() {
#ifdef _SC_LEVEL3_CACHE_SIZE
  return std::max({sysconf(_SC_LEVEL3_CACHE_SIZE), sysconf(_SC_LEVEL2_CACHE_SIZE), 0L});
#else
  return 0;
#endif
}

bool fits_cache(int64_t bytes) {
  return bytes < last_level_cache_bytes();
}

ReadBandwidth measure_read_bandwidth(int64_t bytes, int threads) {
  using Clock = std::chrono::steady_clock;
  if (bytes <= 0) return {};
  ReadBandwidth result{.gb_per_s = 0, .in_cache = fits_cache(bytes)};

  ThreadPool pool(threads);
  const int64_t words = std::max<int64_t>(std::min(bytes, kMostBytes) / 8, 1);
  const auto memory = std::make_unique_for_overwrite<uint64_t[]>(size_t(words));
  constexpr int64_t kPart = 1 << 16;
  pool.parallel_for((words + kPart - 1) / kPart, [&](int64_t part) {
    std::fill(memory.get() + part * kPart, memory.get() + std::min(words, (part + 1) * kPart),
              uint64_t(part));
  });
  volatile uint64_t sink = 0;
  std::vector<double> gb_per_s;
  const auto start = Clock::now();
  auto before = start;
  do {
    sink = sink ^ read_all({memory.get(), size_t(words)}, pool);
    const auto now = Clock::now();
    gb_per_s.push_back(double(words) * 8e-9 / std::chrono::duration<double>(now - before).count());
    before = now;
  } while (before - start < std::chrono::duration<double>(kSeconds) && gb_per_s.size() < kMostPasses);
  result.gb_per_s = quantile(gb_per_s, 0.5);
  return result;
}

}  // namespace spinfer
