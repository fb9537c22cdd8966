// Bytes as people read them, in tables and messages.
#pragma once

#include <cstdint>
#include <string>

namespace spinfer {

/// "1.23 GB", decimal units.
std::string human_bytes(int64_t bytes);
/// In the unit that `like` bytes are shown in: for numbers that are compared.
std::string human_bytes(int64_t bytes, int64_t like);

}  // namespace spinfer
