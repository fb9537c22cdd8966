#!/usr/bin/env python3
"""What a decode step is made of, communication between ranks as its own bar.

    scripts/plot_breakdown.py RESULT.json [RESULT.json ...] -o figure.png

RESULT.json are documents of `spinfer bench latency --breakdown --json`, or of runs of it (scripts/results/h200_tp_*.json). A
part is what the step is shorter without it; parts that run side by side add up to more than the step, which is the line
across its bar. Needs matplotlib.
"""
import argparse
import json
import os
import sys

from figures import pyplot

PARTS = {"linear": "#1a73e8", "attention": "#f9ab00", "norm": "#34a853", "communication": "#ea4335", "sampling": "#a142f4",
         "other": "#9aa0a6"}


def bars_of(path):
    """(label, breakdown) of each row and side that has one."""
    with open(path) as file:
        document = json.load(file)
    name = document.get("model") or os.path.basename(path).removesuffix(".json").split("latency_")[-1]
    for run in document.get("runs", [document]):
        ranks = f"{run['tp']} GPUs\n" if run.get("tp", 1) > 1 else ""
        for row in run.get("rows", [run]):
            for side in ("sparse", "dense"):
                if "breakdown_ms" in row.get(side, {}):
                    yield f"{name}\n{ranks}batch {row['batch_size']}\n{side}", row[side]["breakdown_ms"]


def plot(bars, output):
    plt = pyplot()

    figure, axes = plt.subplots(figsize=(1.5 + 1.2 * len(bars), 4.5))
    bottom = [0.0] * len(bars)
    for part, color in PARTS.items():
        heights = [breakdown[part] for _, breakdown in bars]
        axes.bar(range(len(bars)), heights, 0.6, bottom=bottom, color=color, label=part)
        bottom = [b + h for b, h in zip(bottom, heights)]
    for i, (_, breakdown) in enumerate(bars):
        axes.hlines(breakdown["step"], i - 0.38, i + 0.38, color="black", linewidth=1.2)
        share = 100 * breakdown["communication"] / breakdown["step"]
        if share > 0.5:
            axes.annotate(f"{share:.0f} %\ncommunication", (i, max(bottom[i], breakdown["step"])), ha="center", va="bottom", fontsize=7)
    axes.set_xticks(range(len(bars)), [label for label, _ in bars], fontsize=8)
    axes.set_ylabel("ms a decode step")
    axes.margins(y=0.12)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(output, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+")
    parser.add_argument("-o", "--output", default="breakdown.png")
    args = parser.parse_args()
    bars = [bar for path in args.results for bar in bars_of(path)]
    if not bars:
        sys.exit("plot_breakdown.py: no row with breakdown_ms in " + ", ".join(args.results))
    plot(bars, args.output)


if __name__ == "__main__":
    main()
