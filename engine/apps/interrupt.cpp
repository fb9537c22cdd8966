#include "engine/apps/interrupt.h"

#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <thread>

namespace spinfer {
namespace {
// The one piece of process-wide state: a signal is process-wide.
std::atomic<int> signal_seen{0};
std::atomic<int> grace_ms{250};
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
    const int ms = grace_ms;
    const timespec grace{.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1'000'000};
    sigtimedwait(&set, nullptr, &grace);
    _exit(interrupt_status());
  }).detach();
}

void set_interrupt_grace(int seconds) {
  grace_ms = seconds * 1000;
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
