#include "engine/apps/output.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "kernels/check.h"

namespace spinfer {
namespace {

[[noreturn]] void output_failed() {
  if (errno == EPIPE) throw OutputClosed();
  fail("stdout: {}", std::strerror(errno));
}

}  // namespace

void print_out(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) output_failed();
  flush_output();
}

void print_json(const nlohmann::json& document) {
  print_out(document.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

CsvFile::CsvFile(const std::string& path) : path_(path) {
  if (!wanted()) return;
  file_.open(path_);
  check_system(file_.good(), "{}: cannot be written", path_);
}

void CsvFile::write(std::string_view text) {
  file_ << text;
  check_system(bool(file_.flush()), "{}: cannot be written", path_);
}

void flush_output() {
  if (std::fflush(stdout) != 0) output_failed();
}

}  // namespace spinfer
