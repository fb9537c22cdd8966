// SIGINT: long work polls and unwinds, so that nothing half-written stays; whoever does not poll is ended
// after a moment.
#pragma once

#include <stdexcept>

namespace spinfer {

inline constexpr int kExitInterrupted = 130;

/// Thrown by `stop_if_interrupted`; the program exits with status 130.
class Interrupted : public std::runtime_error {
 public:
  Interrupted() : std::runtime_error("interrupted") {}
};

/// Blocks SIGINT in all threads and waits for it in one of its own. Call once, before other threads start. A
/// second SIGINT, or the end of the grace period after the first, ends the process at once with status 130.
void watch_interrupts();
/// 2 seconds at first. Work that must clean up after itself asks for more: it polls, if not always soon.
void set_interrupt_grace(int seconds);
bool interrupted();
void stop_if_interrupted();

}  // namespace spinfer
