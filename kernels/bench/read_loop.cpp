#include "kernels/bench/read_loop.h"

#include <atomic>

#include "kernels/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace spinfer {
namespace {

uint64_t read_plain(const uint64_t* words, int64_t count) {
  uint64_t sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int j = 0; j < 8; ++j) sums[j] ^= words[i + j];
  }
  for (; i < count; ++i) sums[0] ^= words[i];
  return sums[0] ^ sums[1] ^ sums[2] ^ sums[3] ^ sums[4] ^ sums[5] ^ sums[6] ^ sums[7];
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) uint64_t read_avx512(const uint64_t* words, int64_t count) {
  __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    a = _mm512_xor_si512(a, _mm512_loadu_si512(words + i));
    b = _mm512_xor_si512(b, _mm512_loadu_si512(words + i + 8));
    c = _mm512_xor_si512(c, _mm512_loadu_si512(words + i + 16));
    d = _mm512_xor_si512(d, _mm512_loadu_si512(words + i + 24));
  }
  alignas(64) uint64_t lanes[8];
  _mm512_store_si512(lanes, _mm512_xor_si512(_mm512_xor_si512(a, b), _mm512_xor_si512(c, d)));
  return read_plain(lanes, 8) ^ read_plain(words + i, count - i);
}
#endif

uint64_t read_part(const uint64_t* words, int64_t count) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return read_avx512(words, count);
#endif
  return read_plain(words, count);
}

}  // namespace

uint64_t read_all(std::span<const uint64_t> words, ThreadPool& pool) {
  std::atomic<uint64_t> result{0};
  pool.run([&](int thread, int threads) {
    const auto count = int64_t(words.size());
    const int64_t begin = count * thread / threads, end = count * (thread + 1) / threads;
    result.fetch_xor(read_part(words.data() + begin, end - begin), std::memory_order_relaxed);
  });
  return result;
}

}  // namespace spinfer
