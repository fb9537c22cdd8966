#!/usr/bin/env bash
# Sets up, builds and runs all tests; exit status 0 only if all passed. Needs no GPU: tests that do skip, saying so.
#   scripts/test.sh              fuzz targets for a few seconds each (if clang is there), then the release build's tests
#   scripts/test.sh asan         the tests with AddressSanitizer and UBSan (preset asan, in build-asan/)
#   scripts/test.sh tsan         with ThreadSanitizer
set -euo pipefail
cd "$(dirname "$0")/.."

preset=${1:-release}
case $preset in
  release | debug | cpu | asan | tsan) ;;
  *) echo "test.sh: no preset '$preset': release, debug, cpu, asan or tsan" >&2; exit 2 ;;
esac
build_dir=build
[ "$preset" = release ] || build_dir=build-$preset
status=0

scripts/setup.sh
# The official client for the server's test, before cmake looks for it. Without a package index that test skips.
if [ ! -x "$build_dir/client-venv/bin/python" ] || ! "$build_dir/client-venv/bin/python" -c 'import openai' 2>/dev/null; then
  mkdir -p "$build_dir"
  { python3 -m venv "$build_dir/client-venv" &&
    timeout 180 "$build_dir/client-venv/bin/pip" install -q --disable-pip-version-check --retries 1 'openai>=1.40'; } ||
    echo "test.sh: PyPI's openai package could not be installed, its test will skip" >&2
fi
cmake --preset "$preset" -DSPINFER_TESTS=ON
cmake --build --preset "$preset"

# libFuzzer comes with clang. What g++ found is no reason to build everything twice: only the targets themselves.
if [ "$preset" = release ] && command -v clang++ >/dev/null; then
  cmake --preset fuzz >/dev/null
  mapfile -t fuzzers < <(ctest --test-dir build-fuzz -N -R '^fuzz_' | sed -n 's/^ *Test *#[0-9]*: *//p')
  if [ ${#fuzzers[@]} -gt 0 ]; then
    cmake --build --preset fuzz --target "${fuzzers[@]}"
    ctest --test-dir build-fuzz -R '^fuzz_' --output-on-failure -j "$(nproc)" || status=$?
  fi
fi

ctest --test-dir "$build_dir" --output-on-failure -j "$(nproc)" --no-tests=error | tee "$build_dir/ctest.log" || status=$?
# Once more at the end: after it ctest lists what was skipped, and why fuzzing failed is said above.
grep 'tests passed' "$build_dir/ctest.log"
[ "$status" -eq 0 ] || echo "test.sh: not everything passed, see above" >&2
exit "$status"
