#include "engine/apps/layer_report.h"

#include <fmt/format.h>

#include "engine/human_bytes.h"

namespace spinfer {
namespace {

std::vector<LinearTotals> totals_of_layers(const std::vector<LinearSummary>& linears) {
  std::vector<LinearTotals> layers;
  for (const LinearSummary& linear : linears) {
    layers.resize(size_t(linear.layer) + 1);
    layers.back().add(linear);
  }
  return layers;
}

}  // namespace

void LinearTotals::add(const LinearSummary& linear) {
  weights += linear.m * linear.k;
  nonzeros += linear.nonzeros;
  dense_bytes += linear.dense_bytes;
  packed_bytes += linear.packed_bytes;
  ++linears;
  packed += linear.packed_bytes != linear.dense_bytes;
}

LinearTotals total_of(const std::vector<LinearSummary>& linears) {
  LinearTotals total;
  for (const LinearSummary& linear : linears) total.add(linear);
  return total;
}

std::string dense_reason(const LinearSummary& linear, double min_sparsity) {
  if (linear.packed_bytes != linear.dense_bytes) return {};
  return fmt::format("{:.1f} % zeros, packed from {:.0f} % on", 100 * linear.stack_sparsity,
                     100 * min_sparsity);
}

std::string layers_table(const std::vector<LinearSummary>& linears) {
  std::string table =
      fmt::format("\n{:<10} {:>7} {:>11} {:>11} {:>8}\n", "layer", "zeros", "dense", "packed", "linears");
  int layer = 0;
  for (const LinearTotals& total : totals_of_layers(linears)) {
    table += fmt::format("{:<10} {:>6.1f}% {:>11} {:>11} {:>8}\n", layer++, 100 * total.sparsity(),
                         human_bytes(total.dense_bytes), human_bytes(total.packed_bytes),
                         fmt::format("{}/{}", total.packed, total.linears));
  }
  return table;
}

nlohmann::json layers_json(const std::vector<LinearSummary>& linears) {
  nlohmann::json layers = nlohmann::json::array();
  for (const LinearTotals& total : totals_of_layers(linears)) {
    layers.push_back({{"layer", layers.size()},
                      {"sparsity", total.sparsity()},
                      {"dense_bytes", total.dense_bytes},
                      {"packed_bytes", total.packed_bytes},
                      {"linears", total.linears},
                      {"packed_linears", total.packed}});
  }
  return layers;
}

}  // namespace spinfer
