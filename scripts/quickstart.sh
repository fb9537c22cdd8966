#!/usr/bin/env bash
# Sets up, builds, and runs the main job: text from a pruned demo model, then the sparse run next to the dense one.
#   scripts/quickstart.sh ["your prompt"]
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
[ -t 1 ] || say() { printf '\n== %s\n' "$*"; }

model=tests/data/demo-llama
prompt=${1:-"The old man looked at her and said,"}

say "setting up"
scripts/setup.sh

say "building build/spinfer (a few minutes the first time)"
mkdir -p build
options=(-DSPINFER_TESTS=OFF)
gpu_here() { compgen -G '/dev/nvidia[0-9]*' >/dev/null || [ -e /dev/dxg ]; }
if ! gpu_here && { command -v nvcc || [ -x /usr/local/cuda/bin/nvcc ]; } >/dev/null; then
  echo "No NVIDIA GPU here: for the CPU only, in half the time. With the GPU's part: cmake --preset release && cmake --build --preset release"
  options+=(-DSPINFER_CUDA=OFF)
fi
cmake --preset release "${options[@]}" >build/quickstart.log 2>&1 || { cat build/quickstart.log >&2; exit 1; }
grep -h 'CUDA backend' build/quickstart.log || true
cmake --build --preset release --target spinfer

say "text from the bundled demo model: LLaMA, 4.7 M parameters, half of its linear weights pruned away"
echo "\$ build/spinfer generate -m $model -p \"$prompt\" -n 100 --temp 0.7 --seed 1 --baseline dense"
echo "(so small a model fits in the CPU's caches, where reading fewer bytes gains nothing: the sparse run may be the slower one)"
echo
printf '%s' "$prompt"
build/spinfer generate -m "$model" -p "$prompt" -n 100 --temp 0.7 --seed 1 --baseline dense

say "the same measurement on a model larger than the caches: OPT-1.3B with random weights, 60 % of them zero"
options=(--config configs/models/opt-1.3b.json --sparsity 0.6 --baseline dense --batch-size 1 --input-len 16 --output-len 16)
echo "\$ build/spinfer bench latency ${options[*]}"
echo
build/spinfer bench latency "${options[@]}"

say "done. Next: build/spinfer --help, README.md"
