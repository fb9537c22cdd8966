// The keys that let clients in.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace spinfer {

class ApiKeys {
 public:
  ApiKeys() = default;  ///< none: everybody may
  /// One key a line, of 1 to 256 printable ASCII characters; empty lines and lines that begin with '#' are
  /// skipped. Throws `Error` naming file and line; a file without any key is one too.
  static ApiKeys load(const std::filesystem::path& file);

  bool required() const { return !keys_.empty(); }
  /// True if an Authorization header holds one of the keys: "Bearer KEY", or "Basic" with the key as password
  /// (what browsers can send). The time it takes does not depend on how much of a key is right.
  bool allow(std::string_view authorization) const;

 private:
  std::vector<std::string> keys_;
};

}  // namespace spinfer
