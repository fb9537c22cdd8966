// SIGINT, SIGTERM, SIGHUP: long work polls and unwinds, so that nothing half-written stays; whoever does not
// poll is ended after a moment.
#pragma once

#include <stdexcept>

namespace spinfer {

/// 128 + the signal that was seen: 130 after SIGINT.
int interrupt_status();

/// Thrown by `stop_if_interrupted`; the program exits with `interrupt_status()`.
class Interrupted : public std::runtime_error {
 public:
  Interrupted() : std::runtime_error("interrupted") {}
};

/// Blocks the signals in all threads and waits for them in one of its own. Call once, before other threads
/// start. A second signal, or the end of the grace period after the first, ends the process at once with that
/// status.
void watch_interrupts();
/// A quarter of a second at first. Work that must clean up after itself asks for more: it polls, if not
/// always soon.
void set_interrupt_grace(int seconds);
/// The grace of SIGTERM alone, if longer: for a server that lets its requests finish. Cut short, or not over
/// in that time, it has failed: the process ends with status 1.
void set_drain_grace(int seconds);
/// From now on SIGINT only sets a flag, which `take_sigint` returns and clears: for a program that goes on.
void keep_running_on_sigint();
bool take_sigint();
bool interrupted();
void stop_if_interrupted();

}  // namespace spinfer
