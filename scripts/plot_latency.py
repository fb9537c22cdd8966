#!/usr/bin/env python3
"""The paper's Figures 13 and 14 for the GPU measured: tokens per second by batch size and output length, sparse and
dense, and below them where the memory goes.

    scripts/plot_latency.py RESULT.json [RESULT.json ...] -o figure.png
    scripts/plot_latency.py RESULT.json [RESULT.json ...] --table

RESULT.json are documents of `spinfer bench latency --baseline dense --json` (scripts/results/h200_latency_*.json), one
model each. A run of output length L contains all shorter ones: their throughput follows from the times of its first
steps. --table prints the README's table instead. The figure needs matplotlib.
"""
import argparse
import json
import os
import sys

from figures import pyplot

SIDES = ("sparse", "dense")
COLORS = {"sparse": "#1a73e8", "dense": "#9aa0a6"}
MEMORY = (("weights_bytes", "weights"), ("kv_bytes", "KV cache"), ("workspace_bytes", "workspace"),
          ("scratch_bytes", "scratch"), ("graph_bytes", "graphs"))


def load(paths):
    models = {}
    for path in paths:
        with open(path) as file:
            document = json.load(file)
        rows = document.get("rows", [document])
        name = os.path.basename(path).removesuffix(".json").split("latency_")[-1]
        models[name] = sorted((r for r in rows if "dense" in r), key=lambda r: r["batch_size"])
    models = {name: rows for name, rows in models.items() if rows}
    if not models:
        sys.exit("plot_latency.py: no rows with both columns in " + ", ".join(paths))
    return models


def tokens_per_s(row, side, length):
    column = row[side]
    steps = column["step_ms"][:length - 1]
    return 1000 * row["batch_size"] * length / (column["ttft_ms"] + sum(steps))


def lengths_of(row):
    return [n for n in (64, 128, 256, 512, 1024) if n <= row["output_len"]]


def print_table(models):
    print("| model | batch | sparse, ms a step | dense | gain | sparse, % of byte floor | dense | peak memory, GB | dense |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, rows in models.items():
        for row in rows:
            s, d = row["sparse"], row["dense"]
            print(f"| {name} | {row['batch_size']} | {s['tpot_ms_median']:.2f} | {d['tpot_ms_median']:.2f} "
                  f"| {d['tpot_ms_median'] / s['tpot_ms_median']:.2f}× | {s['floor_pct']:.0f} | {d['floor_pct']:.0f} "
                  f"| {s['peak_bytes'] / 1e9:.1f} | {d['peak_bytes'] / 1e9:.1f} |")


def plot(models, output):
    plt = pyplot()

    figure, axes = plt.subplots(2, len(models), figsize=(5.5 * len(models), 7), squeeze=False)
    for column, (name, rows) in enumerate(models.items()):
        speed, memory = axes[0][column], axes[1][column]
        groups = [(row, length) for row in rows for length in lengths_of(row)]
        for offset, side in zip((-0.2, 0.2), SIDES):
            speed.bar([i + offset for i in range(len(groups))], [tokens_per_s(r, side, n) for r, n in groups], 0.4,
                      color=COLORS[side], label=side)
        speed.set_xticks(range(len(groups)), [f"{r['batch_size']}\n{n}" for r, n in groups], fontsize=7)
        speed.set_title(name)
        speed.set_xlabel("batch size, output length")
        bars = [(row, side) for row in rows for side in SIDES]
        bottom = [0.0] * len(bars)
        for key, label in MEMORY:
            heights = [row[side].get(key, 0) / 1e9 for row, side in bars]
            memory.bar(range(len(bars)), heights, 0.7, bottom=bottom, label=label)
            bottom = [b + h for b, h in zip(bottom, heights)]
        memory.set_xticks(range(len(bars)), [f"{r['batch_size']}\n{side}" for r, side in bars], fontsize=7)
        memory.set_xlabel("batch size")
    axes[0][0].set_ylabel("tokens/s")
    axes[1][0].set_ylabel("GB")
    axes[0][0].legend()
    axes[1][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(output, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+")
    parser.add_argument("-o", "--output", default="latency.png")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    models = load(args.results)
    if args.table:
        print_table(models)
    else:
        plot(models, args.output)


if __name__ == "__main__":
    main()
