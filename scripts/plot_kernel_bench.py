#!/usr/bin/env python3
"""The paper's Figure 10 for the GPU measured: speed-up over the better cuBLAS per matrix, N and sparsity.

    scripts/plot_kernel_bench.py RESULT.json [RESULT.json ...] -o figure.png

RESULT.json are files of scripts/gpu_check.sh (scripts/results/) or arrays of `spinfer bench kernel --json`. One panel per
(N, sparsity); in each, matrices along x in the order of the file and one bar per kernel: cuBLAS (1 by definition),
cuSPARSE, SMBD (the published algorithm) and ours. Needs matplotlib.
"""
import argparse
import json
import math
import sys

from figures import pyplot

NAMES = {"cusparse": "cuSPARSE CSR", "smbd": "SMBD (published)", "auto": "spinfer"}
COLORS = {"cuBLAS": "#9aa0a6", "cuSPARSE CSR": "#c58af9", "SMBD (published)": "#f9ab00", "spinfer": "#1a73e8"}


def load(paths):
    rows, gpu = [], ""
    for path in paths:
        with open(path) as file:
            document = json.load(file)
        if isinstance(document, dict):
            gpu = document.get("gpu", gpu)
            document = document["rows"]
        rows += document
    if not rows:
        sys.exit("plot_kernel_bench.py: no rows in " + ", ".join(paths))
    return rows, gpu


def label(row):
    kernel = row.get("kernel", "auto").split(":")[0]
    return NAMES.get(kernel, kernel)


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+")
    parser.add_argument("-o", "--output", default="kernel_bench.png")
    parser.add_argument("--max-n", type=int, default=64, help="leave out larger N (prefill)")
    args = parser.parse_args()
    rows, gpu = load(args.results)
    rows = [r for r in rows if r["n"] <= args.max_n]
    if not rows:
        sys.exit(f"plot_kernel_bench.py: no rows with n <= {args.max_n}")

    plt = pyplot()

    shapes = list(dict.fromkeys((r["m"], r["k"]) for r in rows))
    tokens = sorted({r["n"] for r in rows})
    sparsities = sorted({r["sparsity"] for r in rows})
    kernels = [k for k in ("cuSPARSE CSR", "SMBD (published)") if any(label(r) == k for r in rows)]
    kernels += [k for k in dict.fromkeys(label(r) for r in rows) if k not in kernels]
    value = {(r["m"], r["k"], r["n"], r["sparsity"], label(r)): r["speedup"] for r in rows}

    width = max(7.0, 0.32 * len(shapes) + 2)
    figure, axes = plt.subplots(len(sparsities), len(tokens), figsize=(width * len(tokens), 2.9 * len(sparsities)),
                                squeeze=False, sharey=True)
    for i, sparsity in enumerate(sparsities):
        for j, n in enumerate(tokens):
            axis = axes[i][j]
            bars = 0.85 / len(kernels)
            for b, kernel in enumerate(kernels):
                y = [value.get((*shape, n, sparsity, kernel), 0) for shape in shapes]
                x = [s + (b - (len(kernels) - 1) / 2) * bars for s in range(len(shapes))]
                known = [v for v in y if v > 0]
                mean = f" (mean {geometric_mean(known):.2f}×)" if known else ""
                axis.bar(x, y, bars, label=kernel + mean, color=COLORS.get(kernel))
            axis.axhline(1, color=COLORS["cuBLAS"], linewidth=1, label="cuBLAS")
            axis.set_title(f"N = {n}, {sparsity:.0%} zeros", fontsize=9)
            axis.set_xticks(range(len(shapes)), [f"{m}×{k}" for m, k in shapes], rotation=90, fontsize=6)
            axis.set_ylim(0, 1.3 * max(row["speedup"] for row in rows))  # room for the legend
            axis.legend(fontsize=6, loc="upper left", ncol=4)
            if j == 0:
                axis.set_ylabel("speed-up over cuBLAS")
    figure.suptitle(f"SpMM against the better of cublasGemmEx and autotuned cuBLASLt, cold weights — {gpu}", fontsize=10)
    figure.tight_layout()
    figure.savefig(args.output, dpi=75)
    print(args.output)


if __name__ == "__main__":
    main()
