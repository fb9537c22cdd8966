// How a kernel reports what the CPU's op would throw: a record in pinned host memory that the host reads
// after it has waited for the device.
#pragma once

#include <cstdint>

namespace spinfer::cuda {

enum class FaultKind : int32_t {
  none,
  embed_id,      ///< value: the row asked for; limit: rows of the table
  seen_token,    ///< value: the id; limit: the vocabulary
  target_token,  ///< value: the id; limit: the vocabulary
};

/// One fault; of several, any one is kept whole enough to be named (kind is written last).
struct Fault {
  int64_t value;
  int64_t limit;
  int32_t row;
  volatile FaultKind kind;
};

/// Throws `Error` saying what the fault means.
[[noreturn]] void throw_fault(const Fault& fault);

#ifdef __CUDACC__
__device__ inline void raise_fault(Fault* fault, FaultKind kind, int32_t row, int64_t value = 0,
                                   int64_t limit = 0) {
  fault->value = value;
  fault->limit = limit;
  fault->row = row;
  __threadfence_system();
  fault->kind = kind;
}
#endif

}  // namespace spinfer::cuda
