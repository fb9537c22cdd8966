// A progress bar on stderr, drawn only on a terminal, at most ten times a second.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

namespace spinfer {

enum class ProgressUnit { bytes, items };

class ProgressBar {
 public:
  ProgressBar(std::string label, ProgressUnit unit);
  ~ProgressBar();  ///< clears the line
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void update(int64_t done, int64_t total);
  /// For interfaces that take a callback; also lets SIGINT unwind the work. The bar must outlive it.
  std::function<void(int64_t, int64_t)> callback();

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  ProgressUnit unit_;
  bool terminal_;
  bool drawn_ = false;
  Clock::time_point start_, last_;
};

}  // namespace spinfer
