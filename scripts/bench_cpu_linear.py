#!/usr/bin/env python3
"""Measures the CPU linear at N = 1 with `spinfer bench kernel` and writes scripts/results/cpu_linear_<cpu>.json.

The file holds every batch of every run (raw), and medians over all of them: the plain read loop, the dense and the packed
linear, which alternate batch by batch, and the median of the paired ratios.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def cpu_facts():
    fields = {}
    for line in subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout.splitlines():
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    wanted = ["Model name", "Vendor ID", "CPU family", "Model", "Stepping", "CPU(s)", "Thread(s) per core",
              "Hypervisor vendor", "L1d cache", "L2 cache", "L3 cache"]
    facts = {key: fields[key] for key in wanted if key in fields}
    flags = fields.get("Flags", "").split()
    facts["SIMD flags"] = " ".join(f for f in flags if f.startswith(("avx", "amx", "f16c", "fma")))
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if pages.exists():
        facts["transparent_hugepage"] = re.search(r"\[(\w+)\]", pages.read_text()).group(1)
    return facts


def summary(rows):
    """One entry a (shape, sparsity), over the batches of all runs."""
    groups = {}
    for row in rows:
        groups.setdefault((row["m"], row["k"], row["sparsity"]), []).append(row)
    entries = []
    for (m, k, sparsity), members in groups.items():
        sparse = [us for row in members for us in row["us_batches"]]
        dense = [us for row in members for us in row["dense_us_batches"]]
        read = [gbps for row in members for gbps in row["read_gbps_batches"]]
        dense_gbps = 2e-3 * m * k / statistics.median(dense)
        entries.append({
            "m": m, "k": k, "n": 1, "sparsity": sparsity,
            "read_gbps": round(statistics.median(read), 2),
            "dense_gbps": round(dense_gbps, 2),
            "dense_pct_of_read_loop": round(100 * dense_gbps / statistics.median(read), 1),
            "packed_gbps": round(statistics.median(row["gbps"] for row in members), 2),
            "dense_us": round(statistics.median(dense), 1),
            "packed_us": round(statistics.median(sparse), 1),
            "speedup_median_of_paired_batches": round(statistics.median(d / s for d, s in zip(dense, sparse)), 3),
            "speedup_of_medians": round(statistics.median(dense) / statistics.median(sparse), 3),
            "batches": len(sparse),
        })
    return entries


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spinfer", default=str(ROOT / "build" / "spinfer"))
    parser.add_argument("--shapes", default="28672x8192,8192x16384,4096x11008,4096x4096")
    parser.add_argument("--sparsity", default="0.4,0.5,0.6,0.7")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--note", default="", help="what a reader should know about the machine at that time")
    parser.add_argument("-o", "--output", help="default: scripts/results/cpu_linear_<cpu>.json")
    args = parser.parse_args()

    command = ["bench", "kernel", "--device", "cpu", "--json", "-N", "1", "--shapes", args.shapes, "--sparsity",
               args.sparsity]
    facts, rows, loads = cpu_facts(), [], []
    for run in range(args.runs):
        loads.append(os.getloadavg()[0])
        done = subprocess.run([args.spinfer, *command], stdout=subprocess.PIPE, check=True)
        rows += [{"run": run, **row} for row in json.loads(done.stdout)]
    result = {
        "what": "linear, N = 1, cold weights (copies rotated beyond four times the last-level cache), all cores",
        "cpu": facts,
        "threads": len(os.sched_getaffinity(0)),
        "date": time.strftime("%Y-%m-%d"),
        "commit": subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True,
                                 text=True).stdout.strip(),
        "command": " ".join(["build/spinfer", *command]),
        "runs": args.runs,
        "load_average_before_each_run": loads,
        "nice": os.nice(0),
        "note": args.note,
        "summary": summary(rows),
        "raw": rows,
    }
    name = re.sub(r"[^a-z0-9]+", "_", facts.get("Model name", "unknown").lower()).strip("_")
    path = Path(args.output) if args.output else ROOT / "scripts" / "results" / f"cpu_linear_{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {path}", file=sys.stderr)
    for entry in result["summary"]:
        print(entry)


if __name__ == "__main__":
    main()
