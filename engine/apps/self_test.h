// Does a device compute what it should? Its heavy ops on small inputs of odd sizes, against double arithmetic
// on the host.
#pragma once

#include <string>
#include <vector>

#include "kernels/device.h"

namespace spinfer {

struct SelfTest {
  std::string op;
  double rel_error = 0;  ///< ‖result − reference‖ / ‖reference‖
  bool ok() const;       ///< no worse than fp16 results have to be
};

std::vector<SelfTest> self_test(Device& device);

}  // namespace spinfer
