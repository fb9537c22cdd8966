// cuSPARSE's CSR SpMM as a baseline of the kernel benchmark. The library is opened when it is asked for: the
// engine does not need it.
#pragma once

#include <memory>

#include "kernels/half.h"

namespace spinfer::cuda {

class Context;

/// One weight in CSR on the device (fp16 values, 32-bit indices): 6 bytes a nonzero and 4 a row.
class CusparseWeight {
 public:
  /// Converts dense [m][k] device memory. Throws `Error` where libcusparse is not installed.
  CusparseWeight(Context& context, const Half* dense, int64_t m, int64_t k);
  ~CusparseWeight();
  CusparseWeight(CusparseWeight&&) noexcept;
  CusparseWeight& operator=(CusparseWeight&&) noexcept;

  /// Queues y [n][m] = W · x [n][k], fp32 accumulation.
  void multiply(const Half* x, int n, Half* y) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace spinfer::cuda
