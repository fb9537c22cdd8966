// The yardstick of the CPU benchmarks: reading memory and doing nothing else with it.
#pragma once

#include <cstdint>
#include <span>

namespace spinfer {

class ThreadPool;

/// Reads all bytes on all threads, each a contiguous part, with the widest loads the CPU has. Returns a value
/// that depends on every word, so that no load can be left out.
uint64_t read_all(std::span<const uint64_t> words, ThreadPool& pool);

}  // namespace spinfer
