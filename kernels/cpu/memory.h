// How much memory this process may use: the machine's RAM, or its control group's limit where that is lower.
#pragma once

#include <cstdint>
#include <filesystem>

namespace spinfer::cpu {

struct HostMemory {
  int64_t total_bytes = 0;
  int64_t free_bytes = 0;  ///< available without swapping; page cache counts as available
};

/// Reads /proc/meminfo, /proc/self/cgroup and the memory limits of the control groups (v1 and v2) the process
/// is in, below `root` (tests give another than "/"). What cannot be read sets no limit.
HostMemory host_memory(const std::filesystem::path& root = "/");

}  // namespace spinfer::cpu
