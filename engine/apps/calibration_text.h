// Calibration samples cut from a text.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "models/config.h"
#include "models/pruning/calibration.h"

namespace spinfer {

struct CalibrationFlags {
  std::string file;         ///< text
  std::string tokens_file;  ///< or ids
  int samples = 128;
  int length = 0;  ///< tokens of a sample, BOS included; 0: 2048, or what the model takes if less

  bool given() const { return !file.empty() || !tokens_file.empty(); }
  void add_to(CLI::App& command);
};

/// Up to `count` windows of `length` tokens spread evenly over `text` without overlap, each begun with `bos`
/// if there is one; as many as the text has room for, but at least one, shorter if need be.
CalibrationSamples cut_samples(const std::vector<int32_t>& text, std::optional<int32_t> bos, int count,
                               int length);

/// Reads and tokenizes as much text as the samples need. Throws `UsageError` for lengths the model does not
/// take, `Error` for a text that gives no token.
CalibrationSamples read_samples(const CalibrationFlags& flags, const std::string& model,
                                const ModelConfig& config);

}  // namespace spinfer
