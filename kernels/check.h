// Errors of two severities. `check` throws for what a user, file, request or device can cause: its message
// names the thing, the value and the legal range. `assert` (cassert) is for programmer errors.
#pragma once

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

namespace spinfer {

/// Any failure that is not a usage error: file, model, device, request. The program exits with status 1.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A bad flag or a value out of range. The program exits with status 2.
class UsageError : public Error {
 public:
  using Error::Error;
};

template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> message, Args&&... args) {
  throw Error(fmt::format(message, std::forward<Args>(args)...));
}

/// Throws `Error` with the formatted message unless `ok`.
template <class... Args>
void check(bool ok, fmt::format_string<Args...> message, Args&&... args) {
  if (!ok) fail(message, std::forward<Args>(args)...);
}

/// For system calls: the same, with the reason errno gives. It reads errno itself, after the arguments were
/// evaluated: an argument `std::strerror(errno)` beside the call could be evaluated before it.
template <class... Args>
void check_system(bool ok, fmt::format_string<Args...> message, Args&&... args) {
  if (ok) return;
  const int reason = errno;
  fail("{}: {}", fmt::format(message, std::forward<Args>(args)...), std::strerror(reason));
}

}  // namespace spinfer
