// Linear weights: what the loader hands to a backend (host) and what a backend hands to `linear` (device).
#pragma once

#include <cstdint>
#include <memory>
#include <variant>
#include <vector>

#include "kernels/format/tca_bme.h"

namespace spinfer {

/// A weight matrix in host memory, dense or packed.
using HostMatrix = std::variant<DenseMatrix, TcaBmeMatrix>;

/// What `linear` reads: y = W·x + b with W [m][k]. Pointers are device pointers; owns nothing.
struct Linear {
  int64_t m = 0;                  ///< out features
  int64_t k = 0;                  ///< in features
  const Half* dense = nullptr;    ///< [m][k] row-major, or null if packed
  TcaBmeView packed;              ///< set if not dense and the backend keeps the canonical order
  const void* layout = nullptr;   ///< backend-private device layout made from the same bits, or null
  const Half* bias = nullptr;     ///< [m], or null

  bool is_dense() const { return dense != nullptr; }
};

/// A linear weight resident on one device.
struct LinearWeight {
  Linear view;
  int64_t nonzeros = 0;
  int64_t dense_bytes = 0;    ///< 2·m·k
  int64_t packed_bytes = 0;   ///< the size formula; dense_bytes where dense
  int64_t device_bytes = 0;   ///< what the weight takes on the device, bias not counted
  std::vector<std::shared_ptr<const void>> storage;  ///< device memory, or the mapped file on the CPU
};

}  // namespace spinfer
