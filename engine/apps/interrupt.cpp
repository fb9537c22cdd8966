#include "engine/apps/interrupt.h"

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <thread>

namespace spinfer {
namespace {
// The one piece of process-wide state: a signal is process-wide.
std::atomic<int> signal_seen{0};
std::atomic<int> grace_ms{250};
}  // namespace

void watch_interrupts() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&set, signal);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::thread([set] {
    int signal = 0;
    sigwait(&set, &signal);
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
