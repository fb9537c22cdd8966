// The all-reduce of a group of devices as an engine calls it, checked and timed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace spinfer {

struct AllReduceRow {
  int64_t bytes = 0;     ///< of the fp16 tensor
  double us = 0;         ///< median time of a call on rank 0, several queued one after the other
  double bus_gbps = 0;   ///< 2·(ranks − 1)/ranks·bytes / time
  bool correct = false;  ///< every rank got the sum
};

/// Opens `ranks` devices (on the CPU: contexts of `threads` threads each), joins them and sums tensors of
/// these sizes. Throws `Error` where a device or the group fails.
std::vector<AllReduceRow> bench_all_reduce(const Backend& backend, int ranks, int threads,
                                           const std::vector<int64_t>& sizes);

}  // namespace spinfer
