// How fast this CPU reads memory when it does nothing else: what decoding is measured against.
#pragma once

#include <cstdint>

namespace spinfer {

struct ReadBandwidth {
  double gb_per_s = 0;    ///< 0: not measured
  bool in_cache = false;  ///< the bytes read fit the last-level cache, so this is no measure of the memory
};

/// Of the CPU; 0: unknown.
int64_t last_level_cache_bytes();
/// False where that is unknown.
bool fits_cache(int64_t bytes);

/// Median over passes that read `bytes` (at most 768 MB of them) on `threads` threads (0 = all), again and
/// again, as decode steps read their weights. Takes about 0.3 s at most.
ReadBandwidth measure_read_bandwidth(int64_t bytes, int threads);

}  // namespace spinfer
