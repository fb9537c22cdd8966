// stdout for results. A reader that goes away (`spinfer … | head -1`) ends the program quietly, any other
// failure loudly.
#pragma once

#include <fstream>
#include <nlohmann/json_fwd.hpp>
#include <stdexcept>
#include <string>
#include <string_view>

namespace spinfer {

/// Thrown when stdout was closed by its reader.
class OutputClosed : public std::runtime_error {
 public:
  OutputClosed() : std::runtime_error("stdout was closed") {}
};

/// Writes and flushes.
void print_out(std::string_view text);
/// One JSON document and a newline; invalid UTF-8 becomes U+FFFD.
void print_json(const nlohmann::json& document);
/// The file that --csv names, opened before what is to be written is measured; an empty path is none.
/// Throws `Error` naming the path and the reason if it cannot be opened or written.
class CsvFile {
 public:
  explicit CsvFile(const std::string& path);
  bool wanted() const { return !path_.empty(); }
  void write(std::string_view text);

 private:
  std::string path_;
  std::ofstream file_;
};

/// Flushes stdout. Throws `Error` if what was written did not arrive.
void flush_output();

}  // namespace spinfer
