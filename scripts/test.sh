#!/usr/bin/env bash
# Sets up, builds and runs all tests; exit status is ctest's. Needs no GPU: tests that do skip, saying so.
#   scripts/test.sh              release build in build/, all tests
#   scripts/test.sh asan         the same with AddressSanitizer and UBSan (preset asan, in build-asan/)
#   scripts/test.sh tsan         with ThreadSanitizer
set -euo pipefail
cd "$(dirname "$0")/.."

preset=${1:-release}
scripts/setup.sh
cmake --preset "$preset"
cmake --build --preset "$preset"
build_dir=build
[ "$preset" = release ] || build_dir=build-$preset
ctest --test-dir "$build_dir" --output-on-failure -j "$(nproc)" --no-tests=error
