// Where the tests' files are: as the build says, or the environment of a machine that did not build them
// (scripts/gpu_bundle.sh).
#pragma once

#include <cstdlib>
#include <filesystem>

namespace spinfer::test {

inline std::filesystem::path path_from(const char* variable, const char* otherwise) {
  const char* value = std::getenv(variable);
  return value && *value ? value : otherwise;
}
/// The project's root.
inline std::filesystem::path source_directory() {
  return path_from("SPINFER_SOURCE_DIR", SPINFER_SOURCE_DIR);
}
/// Larger files, which may be missing.
inline std::filesystem::path assets_directory() {
  return path_from("SPINFER_ASSETS", SPINFER_ASSETS);
}

}  // namespace spinfer::test
