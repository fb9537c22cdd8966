// What `pack` and `prune` share: the flags of an output directory, and the line that says what was written.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "engine/apps/options.h"

namespace spinfer {

/// Input, output and what is worth packing.
struct OutputFlags {
  CommonFlags common;
  std::string out;
  double min_sparsity = 0.3;

  void add_to(CLI::App& command, const FlagUses& uses);
};

/// A large matrix or a slow disk may take a while between two looks at SIGINT, and no half-written directory
/// may stay.
inline constexpr int kOutputInterruptGrace = 60;

enum class Written { packed, dense };

/// Prints what the new directory holds and what it takes in memory; `more` joins the JSON document.
void report_written(const OutputFlags& flags, Written written, ThreadPool& pool, const nlohmann::json& more);

}  // namespace spinfer
