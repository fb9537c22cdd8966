#include "engine/human_bytes.h"

#include <fmt/format.h>

namespace spinfer {

std::string human_bytes(int64_t bytes) {
  return human_bytes(bytes, bytes);
}

std::string human_bytes(int64_t bytes, int64_t like) {
  const char* units[] = {"B", "kB", "MB", "GB", "TB"};
  double value = double(bytes);
  int unit = 0;
  for (double size = double(like); size >= 1000 && unit < 4; size /= 1000, ++unit) value /= 1000;
  return unit == 0 || bytes == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.2f} {}", value, units[unit]);
}

}  // namespace spinfer
