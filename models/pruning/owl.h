// How OWL turns shares of outliers into sparsities. Internal to models/ and its tests.
#pragma once

#include <vector>

namespace spinfer {

/// Each layer's share of outliers → its sparsity: linear in the share, mean `sparsity`, from the most to the
/// least pruned layer 2·lambda; all the same where the shares are. Clamped to 0…1.
std::vector<double> allocate_by_outliers(const std::vector<double>& shares, double sparsity, double lambda);

}  // namespace spinfer
