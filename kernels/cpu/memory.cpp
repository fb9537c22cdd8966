#include "kernels/cpu/memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

namespace spinfer::cpu {
namespace {

namespace fs = std::filesystem;

/// The number after `key` in a file of "key number" lines.
std::optional<int64_t> field(const fs::path& file, const std::string& key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (line.compare(0, key.size(), key) != 0) continue;
    try {
      return std::stoll(line.substr(key.size()));
    } catch (const std::exception&) {
      return std::nullopt;
    }
  }
  return std::nullopt;
}

/// The number a file consists of; none for "max" (no limit).
std::optional<int64_t> number(const fs::path& file) {
  return field(file, "");
}

/// File names of one control group version, and the statistic that counts reclaimable page cache.
struct CgroupFiles {
  const char* limit;
  const char* used;
  const char* page_cache;
};

void apply_limit(const fs::path& group, const CgroupFiles& files, HostMemory& memory) {
  const auto limit = number(group / files.limit);
  if (!limit || *limit < 0 || *limit >= memory.total_bytes) return;
  const int64_t used = number(group / files.used).value_or(0);
  const int64_t cache = field(group / "memory.stat", files.page_cache).value_or(0);
  memory.total_bytes = *limit;
  memory.free_bytes = std::clamp<int64_t>(*limit - std::max<int64_t>(used - cache, 0), 0, memory.free_bytes);
}

/// The group's own limit and those of the groups it is in. Inside a container the path of /proc/self/cgroup
/// may not exist; then the mount point itself is the container's group.
void apply_limits(const fs::path& mount, fs::path group, const CgroupFiles& files, HostMemory& memory) {
  while (true) {
    apply_limit(mount / group.relative_path(), files, memory);
    if (group.relative_path().empty()) return;
    group = group.parent_path();
  }
}

}  // namespace

HostMemory host_memory(const fs::path& root) {
  constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max();
  HostMemory memory{kUnknown, kUnknown};
  if (const auto kib = field(root / "proc/meminfo", "MemTotal:")) memory.total_bytes = *kib * 1024;
  if (const auto kib = field(root / "proc/meminfo", "MemAvailable:")) memory.free_bytes = *kib * 1024;

  // Lines are "id:controllers:path"; version 2 is "0::path".
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = fmt::format(",{},", line.substr(first + 1, second - first - 1));
    const fs::path path = line.substr(second + 1);
    if (controllers == ",,") {
      apply_limits(root / "sys/fs/cgroup", path, {"memory.max", "memory.current", "inactive_file "}, memory);
    } else if (controllers.find(",memory,") != std::string::npos) {
      apply_limits(root / "sys/fs/cgroup/memory", path,
                   {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "}, memory);
    }
  }
  return memory;
}

}  // namespace spinfer::cpu
