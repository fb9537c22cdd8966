#!/usr/bin/env bash
# Builds and packs programs for a GPU machine that cannot build the tree: one archive with which scripts/gpu_check.sh runs there.
#
#   scripts/gpu_bundle.sh [--bin BUILD] [--assets DIR] [--programs NAME,…] [-o FILE.tar.xz]
#
# In it, under spinfer-gpu/: the programs without symbols, the shared libraries that they need and the other machine may lack
# (all but CUDA's, NCCL and the C and C++ libraries), scripts, configs, demo models, with --assets also what the serving checks
# and the tests of whole models need of that folder (tokenizers/llama2, traces, hf_goldens), and the commit.
# There:  tar -xf FILE && spinfer-gpu/scripts/gpu_check.sh --out RESULTS [--only …]
# Here again:  scripts/readme_figures.py --take RESULTS
set -euo pipefail
from=$PWD
cd "$(dirname "$0")/.."
absolute() { case $1 in /*) echo "$1" ;; *) echo "$from/$1" ;; esac }

bin=build assets='' out=$(absolute spinfer-gpu.tar.xz)
programs=spinfer,gpu_tests,cuda_ops_tests,engine_tests,engine_gpu_tests,gpu_linear_bench,gpu_ops_bench,gpu_collective_bench
while [ $# -gt 0 ]; do
  case $1 in
    --bin) bin=$(absolute "$2"); shift 2 ;;
    --assets) assets=$(absolute "$2"); shift 2 ;;
    --programs) programs=$2; shift 2 ;;
    -o) out=$(absolute "$2"); shift 2 ;;
    *) echo "gpu_bundle.sh: unknown argument $1 (see the head of the script)" >&2; exit 2 ;;
  esac
done

staging=$(mktemp -d)
trap 'rm -rf "$staging"' EXIT
root=$staging/spinfer-gpu
mkdir -p "$root/bin"
cmake --build "$bin" --parallel "$(nproc)" --target ${programs//,/ } >&2 ||
  { echo "gpu_bundle.sh: $bin cannot be built (configured without CUDA or tests?)" >&2; exit 1; }
for name in ${programs//,/ }; do
  program=$(find "$bin" -type f -name "$name" -perm -u+x -print -quit)
  [ -n "$program" ] || { echo "gpu_bundle.sh: no $name below $bin (built without CUDA or tests?)" >&2; exit 1; }
  strip -o "$root/bin/$name" "$program"
  ldd "$program"
done | awk '$3 ~ /^\// && $1 !~ /^lib(cuda|cudart|cublas|cublasLt|cusparse|nvJitLink|nccl|c|m|dl|rt|pthread|gcc_s|stdc\+\+)\.so/ {print $3}' |
  sort -u | xargs -r -I{} cp -L {} "$root/bin/"
git ls-files -z scripts configs tests/data ':!scripts/results' | xargs -0 cp --parents -t "$root"
if [ -n "$assets" ]; then
  for folder in tokenizers/llama2 traces hf_goldens; do
    mkdir -p "$root/assets/$folder" && cp -RL "$assets/$folder/." "$root/assets/$folder/"
  done
fi
commit=$(git rev-parse --short HEAD)
[ -z "$(git status --porcelain --untracked-files=no)" ] || commit=$commit-changed
echo "$commit" >"$root/COMMIT"
tar -C "$staging" -cf - spinfer-gpu | xz -T0 -6 >"$out"
echo "$out: $(du -h "$out" | cut -f1), $commit"
