#include "engine/apps/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "engine/apps/interrupt.h"

namespace spinfer {

ProgressBar::ProgressBar(std::string label, ProgressUnit unit)
    : label_(std::move(label)), unit_(unit), terminal_(isatty(STDERR_FILENO)), start_(Clock::now()) {}

ProgressBar::~ProgressBar() {
  if (drawn_) std::fputs("\r\x1b[K", stderr);
}

void ProgressBar::update(int64_t done, int64_t total) {
  if (!terminal_ || total <= 0) return;
  const auto now = Clock::now();
  if (done < total && now - last_ < std::chrono::milliseconds(100)) return;
  last_ = now;
  drawn_ = true;
  constexpr int kWidth = 30;
  const double share = std::clamp(double(done) / double(total), 0.0, 1.0);
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double rate = seconds > 0 ? double(done) / seconds : 0;
  const double left = rate > 0 ? double(total - done) / rate : 0;
  const int filled = int(share * kWidth);
  const std::string speed =
      unit_ == ProgressUnit::bytes ? fmt::format("{:.2f} GB/s", rate / 1e9) : fmt::format("{:.1f}/s", rate);
  std::fputs(fmt::format("\r{} [{:#<{}}{: <{}}] {:3.0f}% {} {:.0f}s left\x1b[K", label_, "", filled, "",
                         kWidth - filled, share * 100, speed, left)
                 .c_str(),
             stderr);
  std::fflush(stderr);
}

std::function<void(int64_t, int64_t)> ProgressBar::callback() {
  return [this](int64_t done, int64_t total) {
    stop_if_interrupted();
    update(done, total);
  };
}

}  // namespace spinfer
