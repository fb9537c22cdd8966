#!/usr/bin/env bash
# Sets up, builds, and runs the main job: text from a pruned demo model, then the sparse run next to the dense one.
#   scripts/quickstart.sh ["your prompt"]
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
cmake --preset release -DSPINFER_TESTS=OFF >/dev/null
cmake --build --preset release --target spinfer

model=tests/data/demo-llama
prompt=${1:-"Prince Andrew looked at her and said"}
echo
echo "\$ build/spinfer generate -m $model -p \"$prompt\" -n 120 --seed 1 --baseline dense --report"
echo
printf '%s' "$prompt"
build/spinfer generate -m "$model" -p "$prompt" -n 120 --seed 1 --baseline dense --report
