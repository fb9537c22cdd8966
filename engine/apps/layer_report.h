// Zeros and bytes layer by layer, and why a linear stays dense: what `inspect` shows of the linears.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "models/checkpoint_tools.h"

namespace spinfer {

struct LinearTotals {
  int64_t weights = 0, nonzeros = 0, dense_bytes = 0, packed_bytes = 0;
  int linears = 0, packed = 0;

  double sparsity() const { return weights > 0 ? 1 - double(nonzeros) / double(weights) : 0; }
  void add(const LinearSummary& linear);
};
LinearTotals total_of(const std::vector<LinearSummary>& linears);

/// Empty for one that is packed.
std::string dense_reason(const LinearSummary& linear, double min_sparsity);

/// One line, or one object, a layer. `linears` in the order of the layers.
std::string layers_table(const std::vector<LinearSummary>& linears);
nlohmann::json layers_json(const std::vector<LinearSummary>& linears);

}  // namespace spinfer
