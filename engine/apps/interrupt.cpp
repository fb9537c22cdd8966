#include "engine/apps/interrupt.h"

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <thread>

namespace spinfer {
namespace {
// The one piece of process-wide state: a signal is process-wide.
std::atomic<bool> interrupt_seen{false};
std::atomic<int> grace_seconds{2};
}  // namespace

void watch_interrupts() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::thread([set] {
    int signal = 0;
    sigwait(&set, &signal);
    interrupt_seen = true;
    const timespec grace{.tv_sec = grace_seconds, .tv_nsec = 0};
    sigtimedwait(&set, nullptr, &grace);
    _exit(kExitInterrupted);
  }).detach();
}

void set_interrupt_grace(int seconds) {
  grace_seconds = seconds;
}
bool interrupted() {
  return interrupt_seen;
}
void stop_if_interrupted() {
  if (interrupt_seen) throw Interrupted();
}

}  // namespace spinfer
