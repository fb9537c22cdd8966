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
}  // namespace

void watch_interrupts(double grace_seconds) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::thread([set, grace_seconds] {
    int signal = 0;
    sigwait(&set, &signal);
    interrupt_seen = true;
    const timespec grace{time_t(grace_seconds), long((grace_seconds - double(time_t(grace_seconds))) * 1e9)};
    sigtimedwait(&set, nullptr, &grace);  // a second SIGINT, or the end of the grace period
    _exit(kExitInterrupted);
  }).detach();
}

bool interrupted() {
  return interrupt_seen;
}
void stop_if_interrupted() {
  if (interrupt_seen) throw Interrupted();
}

}  // namespace spinfer
