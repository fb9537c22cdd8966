#!/usr/bin/env bash
# Everything that needs a GPU, on the machine that has one: correctness, compute-sanitizer, kernel speed.
#
#   scripts/gpu_check.sh [--bin DIR] [--out DIR] [--archive FILE] [--only PART,…]
#
# --bin      folder of the built programs (default: build; in what scripts/gpu_bundle.sh packs, bin)
# --assets   folder of tokenizers and traces for the serving checks, and of the tests' larger models (default: $SPINFER_ASSETS,
#            else ../shared/assets; in a bundle, its own)
# --out      where results go (default: $OUT, else gpu_check_results): NAME.json of each bench, summary.txt, logs/;
#            `scripts/readme_figures.py --take` puts them where h200_NAME.json stand
# --archive  a .tar.gz of all that, rewritten after every part
# --only     some of tests,large,prefill,small,baselines,sanitizer (the default, in this order) and paper (the 31 matrices
#            of Figure 10, with SMBD), cusparse, fused; latency (whole models, sparse and dense); serving (scripts/serving_check.py);
#            hf (scripts/hf_agreement.py: torch, transformers); two_gpus (scripts/tensor_parallel_check.py)
# Exit status 0 only if every part passed. SPINFER_COMMIT names the commit where neither .git nor a bundle's COMMIT does.
set -uo pipefail
from=$PWD
cd "$(dirname "$0")/.."
absolute() { case $1 in /*) echo "$1" ;; *) echo "$from/$1" ;; esac }

bin=build assets=../shared/assets out=gpu_check_results archive=''
[ ! -f COMMIT ] || bin=bin assets=assets
[ -z "${SPINFER_ASSETS:-}" ] || assets=$(absolute "$SPINFER_ASSETS")
[ -z "${OUT:-}" ] || out=$(absolute "$OUT")
only=tests,large,prefill,small,baselines,sanitizer
while [ $# -gt 0 ]; do
  case $1 in
    --bin) bin=$(absolute "$2"); shift 2 ;;
    --assets) assets=$(absolute "$2"); shift 2 ;;
    --out) out=$(absolute "$2"); shift 2 ;;
    --archive) archive=$(absolute "$2"); shift 2 ;;
    --only) only=$2; shift 2 ;;
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' scripts/gpu_check.sh; exit 0 ;;
    *) echo "gpu_check.sh: unknown argument $1 (see the head of the script)" >&2; exit 2 ;;
  esac
done
for part in ${only//,/ }; do
  case $part in
    tests | large | prefill | small | baselines | sanitizer | paper | cusparse | fused | latency | serving | hf | two_gpus) ;;
    *) echo "gpu_check.sh: --only $part: no such part (see the head of the script)" >&2; exit 2 ;;
  esac
done
mkdir -p "$out/logs"
logs=$out/logs
commit=${SPINFER_COMMIT:-$(cat COMMIT 2>/dev/null || git rev-parse --short HEAD 2>/dev/null || echo unknown)}
export SPINFER_COMMIT=$commit SPINFER_SOURCE_DIR=$PWD SPINFER_ASSETS=$(realpath -m "$assets")
find_program() {
  for p in "$bin/$1" "$bin/tests/kernels/$1" "$bin/tests/engine/$1" "$bin/kernels/bench/$1" "$bin/kernels/$1"; do
    [ -x "$p" ] && echo "$p" && return
  done
  echo "$bin/$1"
}
tests=$(find_program gpu_tests) bench=$(find_program gpu_linear_bench)
export LD_LIBRARY_PATH=$bin:/usr/local/cuda/lib64:${LD_LIBRARY_PATH:-}
wanted() { case ,$only, in *,$1,*) return 0 ;; *) return 1 ;; esac }
failed=() summary=()
pack() { [ -z "$archive" ] || tar -C "$out" -czf "$archive" .; }
note() { summary+=("$(printf '%-22s %s' "$1" "$2")"); echo "$SECONDS s: ${summary[-1]}"; pack; }

nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv,noheader | tee "$logs/gpu.txt" || failed+=(nvidia-smi)

run_tests() {  # program; a test without its model or its second GPU skips itself
  local log=$logs/$1.log
  if timeout 60 "$(find_program "$1")" >"$log" 2>&1; then
    note "$1" "$(grep -c '^\[       OK' "$log") passed, $(grep -c '^\[  SKIPPED \].*ms)$' "$log") skipped"
  else failed+=("$1"); note "$1" "FAILED: $(grep -m3 'Failure' -A12 "$log" | head -30)"; fi
}
if wanted tests; then
  for program in gpu_tests cuda_ops_tests engine_gpu_tests; do run_tests $program; done
  grep -E '^  (dense|smbd|stream|scratch|fused) ' "$logs/gpu_tests.log" |
    awk '{n[$1]+=$2; if ($NF+0>e[$1]+0) e[$1]=$NF} END {for (k in n) printf "  %-8s %5d cases, largest relative error %s\n", k, n[k], e[k]}' |
    tee "$logs/tests_summary.txt"
fi

run_bench() {  # name, then arguments of gpu_linear_bench
  local name=$1; shift
  if timeout 120 "$bench" "$@" --json "$logs/$name.raw.json" --csv "$logs/$name.csv" >"$logs/$name.log" 2>&1; then
    python3 - "$logs/$name.raw.json" "$out/$name.json" "$commit" "gpu_linear_bench $*" "$(head -1 "$logs/gpu.txt")" <<'PY' && rm "$logs/$name.raw.json"
import json, sys
raw, target, commit, command, smi = sys.argv[1:]
report = json.load(open(raw))
json.dump({"commit": commit, "command": command, "nvidia_smi": smi, **report}, open(target, "w"))
PY
    note "bench $name" "done"
  else failed+=("bench $name"); note "bench $name" "FAILED: $(tail -1 "$logs/$name.log")"; fi
}
if wanted large; then run_bench linear_large --shapes large -N 1,8,16,32,64 --sparsity 0.4,0.5,0.6,0.7; fi
if wanted prefill; then run_bench linear_prefill --shapes large -N 128,256,512,1024,2048 --sparsity 0.5,0.6,0.7 --kernel fused,scratch; fi
if wanted small; then run_bench linear_small --shapes 4096x4096,5120x5120,4096x11008,11008x4096,8192x8192 -N 8,16,32 --sparsity 0.5,0.6,0.7; fi
if wanted baselines; then run_bench linear_baselines --shapes 4096x4096,12288x12288,28672x8192,8192x28672 -N 8,16,32 --sparsity 0.5,0.6 --kernel smbd,auto; fi
if wanted paper; then run_bench linear_paper --shapes paper -N 8,16,32 --sparsity 0.4,0.5,0.6,0.7 --kernel smbd,auto; fi
if wanted cusparse; then run_bench linear_cusparse --shapes 4096x4096,8192x8192 -N 8,16,32 --sparsity 0.5,0.7 --kernel cusparse,auto; fi
if wanted fused; then run_bench linear_fused_shapes --shapes fused -N 8,16,32 --sparsity 0.5,0.6,0.7; fi

run_latency() {  # name of the result, model, then arguments of `spinfer bench latency`
  local name=latency_$1 model=$2; shift 2
  if timeout 120 "$(find_program spinfer)" bench latency --config "configs/models/$model.json" --sparsity 0.6 --device cuda --json "$@" \
      >"$logs/$name.raw.json" 2>"$logs/$name.log"; then
    python3 - "$logs/$name.raw.json" "$out/$name.json" "$commit" "$model" "$*" "$(head -1 "$logs/gpu.txt")" <<'PY' && rm "$logs/$name.raw.json"
import json, sys
raw, target, commit, model, arguments, smi = sys.argv[1:]
document = json.load(open(raw))
for row in document.get("rows", [document]):
    for side in ("sparse", "dense"):
        if side in row:
            row[side]["step_ms"] = [round(ms, 4) for ms in row[side]["step_ms"]]
command = f"spinfer bench latency --config configs/models/{model}.json --sparsity 0.6 --device cuda --json {arguments}"
json.dump({"commit": commit, "model": model, "command": command, "nvidia_smi": smi, **document}, open(target, "w"))
PY
    note "$name" "done"
  else failed+=("$name"); note "$name" "FAILED: $(tail -1 "$logs/$name.log")"; fi
}
if wanted latency; then
  run_latency llama-2-7b llama-2-7b --batch-size 1,8,16,32 --input-len 64 --output-len 256 --baseline dense --breakdown
  run_latency opt-13b opt-13b --batch-size 1,8,16,32 --input-len 64 --output-len 256 --baseline dense
  run_latency opt-30b opt-30b --batch-size 8 --input-len 64 --output-len 256 --baseline dense
  run_latency opt-13b_length256 opt-13b --batch-size 16 --input-len 64 --output-len 192 --baseline dense
  run_latency llama-2-7b_prompt2048 llama-2-7b --batch-size 1 --input-len 2048 --output-len 16 --baseline dense
fi

model_directory() {  # name in configs/models; a folder with that config and a LLaMA tokenizer, for servers with random weights
  local directory=$logs/model_$1
  mkdir -p "$directory"
  cp "$assets"/tokenizers/llama2/* "$directory/" && cp "configs/models/$1.json" "$directory/config.json" && echo "$directory"
}
run_script() {  # name of the part, seconds, then a script and its arguments
  local name=$1 limit=$2; shift 2
  if timeout "$limit" python3 -B "$@" >"$logs/$name.log" 2>&1; then note "$name" "$(tail -1 "$logs/$name.log")"
  else failed+=("$name"); note "$name" "FAILED: $(grep FAILED "$logs/$name.log" || tail -1 "$logs/$name.log")"; fi
}
trace=$assets/traces/AzureLLMInferenceTrace_conv.csv
if wanted serving; then
  run_script serving 200 scripts/serving_check.py -o "$out" --program "$(find_program spinfer)" --trace "$trace" \
    --config "$(model_directory llama-2-7b)/config.json"
fi
if wanted hf; then
  run_script hf 300 scripts/hf_agreement.py --spinfer "$(find_program spinfer)" --out "$out/hf_agreement.json"
fi
if wanted two_gpus; then
  run_script two_gpus 400 scripts/tensor_parallel_check.py -o "$out" --bin "$bin" --trace "$trace" \
    --config "$(model_directory llama-2-70b)/config.json" --fault-config configs/models/llama-2-7b.json \
    --only "${SPINFER_TWO_GPU_PARTS:-tests,all_reduce,faults,serve,checkpoint,load,latency}"
fi

echo "== geometric mean of the speed-up over the better cuBLAS, by kernel, n and sparsity =="
python3 - "$out" <<'PY' | tee "$out/summary.txt"
import glob, json, math, os, sys
for path in sorted(glob.glob(os.path.join(sys.argv[1], "*.json"))):
    rows = [r for r in json.load(open(path)).get("rows", []) if "kernel" in r]
    if not rows:
        continue
    groups = {}
    for r in rows:
        groups.setdefault((r["kernel"], r["n"]), {}).setdefault(r["sparsity"], []).append(r["speedup"])
    worst = max(r["rel_error"] for r in rows)
    slowest = min((r["prepare_gbps"] for r in rows if r.get("prepare_gbps")), default=0)
    print(f"{os.path.basename(path)}: largest relative error {worst:.1e}, slowest layout build {slowest:.0f} GB/s")
    for (kernel, n), by in sorted(groups.items()):
        cells = "  ".join(f"{round(s * 100)}%: {math.exp(sum(map(math.log, v)) / len(v)):.3f}" for s, v in sorted(by.items()))
        print(f"  {kernel:14} n={n:<5} {cells}")
PY

if wanted sanitizer; then
  sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
  # Only our kernels: racecheck reports hazards inside cuBLAS's own (nvjet_sm90_*), which order their shared memory
  # by means it does not model. Where it leaves them alone it ends with an error of its own: it runs without them.
  for tool in memcheck synccheck racecheck; do
    own=0
    [ $tool != racecheck ] || own=1
    sanitize() {
      SPINFER_GPU_TEST_REDUCED=1 SPINFER_GPU_TEST_RACECHECK=$own timeout 90 "$sanitizer" --tool "$tool" --error-exitcode 9 \
        --kernel-name kernel_substring=spinfer "$1" --gtest_filter="$2"
    }
    if { sanitize "$tests" "${SPINFER_SANITIZER_FILTER:-*:-*AllocationFailure*}" &&
         sanitize "$(find_program cuda_ops_tests)" 'CudaLinear.*'; } >"$logs/$tool.log" 2>&1; then
      note "$tool" "clean ($(grep -c '^\[       OK' "$logs/$tool.log") tests)"
    else status=$?; failed+=("$tool"); note "$tool" "FAILED (status $status): $(grep -m2 '=========' "$logs/$tool.log" | tail -1)"; fi
  done
fi

{
  echo
  printf '%s\n' "${summary[@]}"
  if [ ${#failed[@]} -gt 0 ]; then echo "FAILED: ${failed[*]}"; else echo "all parts passed ($commit)"; fi
} | tee -a "$out/summary.txt"
pack
[ ${#failed[@]} -eq 0 ]
