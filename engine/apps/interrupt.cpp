#include "engine/apps/interrupt.h"

#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <thread>

namespace spinfer {
namespace {
// The one piece of process-wide state: a signal is process-wide.
std::atomic<int> signal_seen{0};
std::atomic<int> grace_ms{250};
std::atomic<int> drain_grace_ms{0};
std::atomic<bool> sigint_only_noted{false};
std::atomic<bool> sigint_noted{false};

constexpr int kWatched[] = {SIGINT, SIGTERM, SIGHUP};

// The linker's earliest hook, milliseconds before main: a signal that comes while the shared libraries start
// waits for watch_interrupts instead of killing the program. A plain system call, as the libraries (and a
// sanitizer that wraps them) are not there yet.
void block_signals(int, char**, char**) {
  uint64_t mask = 0;
  for (const int signal : kWatched) mask |= uint64_t{1} << (signal - 1);
  syscall(SYS_rt_sigprocmask, SIG_BLOCK, &mask, nullptr, sizeof(mask));
}
[[gnu::section(".preinit_array"), gnu::used]] void (*const block_signals_first)(int, char**,
                                                                                char**) = block_signals;

/// Until a second signal of `set` or the end of `grace`. A stopped and continued process (a debugger, the
/// leak check after main) has its system calls interrupted: that ends nothing.
void wait_for_second(const sigset_t& set, std::chrono::nanoseconds grace) {
  const auto end = std::chrono::steady_clock::now() + grace;
  for (auto left = grace; left.count() > 0; left = end - std::chrono::steady_clock::now()) {
    const auto seconds = std::chrono::floor<std::chrono::seconds>(left);
    const timespec wait{.tv_sec = seconds.count(), .tv_nsec = (left - seconds).count()};
    if (sigtimedwait(&set, nullptr, &wait) >= 0 || errno != EINTR) return;
  }
}
}  // namespace

void watch_interrupts() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : kWatched) sigaddset(&set, signal);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::thread([set] {
    int signal = 0;
    for (;;) {
      sigwait(&set, &signal);
      if (signal != SIGINT || !sigint_only_noted) break;
      sigint_noted = true;
    }
    signal_seen = signal;
    const int drain = signal == SIGTERM ? int(drain_grace_ms) : 0;
    wait_for_second(set, std::chrono::milliseconds(std::max(int(grace_ms), drain)));
    _exit(drain > 0 ? 1 : interrupt_status());
  }).detach();
}

void set_interrupt_grace(int seconds) {
  grace_ms = seconds * 1000;
}
void set_drain_grace(int seconds) {
  drain_grace_ms = seconds * 1000;
}
void keep_running_on_sigint() {
  sigint_only_noted = true;
}
bool take_sigint() {
  return sigint_noted.exchange(false);
}
int interrupt_status() {
  return 128 + signal_seen;
}
bool interrupted() {
  return signal_seen != 0;
}
void stop_if_interrupted() {
  if (interrupted()) throw Interrupted();
}

}  // namespace spinfer
