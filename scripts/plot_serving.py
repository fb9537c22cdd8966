#!/usr/bin/env python3
"""Latency over request rate, from the JSON lines of `spinfer bench serve --json --request-rate 1,2,4,…`.

    scripts/plot_serving.py runs.jsonl [more.jsonl …] -o serving.png      one curve a file, named after it
"""

import argparse
import json
import pathlib

from figures import pyplot

PANELS = [("ttft_ms", "time to first token, ms"), ("tpot_ms", "time per output token, ms"), ("e2el_ms", "whole request, ms")]


def read_runs(path):
    runs = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    if not runs:
        raise SystemExit(f"{path}: holds no runs")
    return sorted(runs, key=lambda run: (run["request_rate"] == "inf", rate_of(run)))


def rate_of(run):
    """Requests a second that were asked; answered, where all came at once or as a trace has them."""
    asked = run["request_rate"]
    return run["request_throughput"] if asked in ("inf", "trace") else float(asked)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("-o", "--output", type=pathlib.Path, default=pathlib.Path("serving.png"))
    arguments = parser.parse_args()

    plt = pyplot()

    figure, axes = plt.subplots(1, len(PANELS), figsize=(5 * len(PANELS), 4))
    for path in arguments.files:
        runs = read_runs(path)
        rates = [rate_of(run) for run in runs]
        for axis, (name, _) in zip(axes, PANELS):
            line, = axis.plot(rates, [run[f"median_{name}"] for run in runs], "o-", label=f"{path.stem}, median")
            axis.plot(rates, [run[f"p99_{name}"] for run in runs], "o--", color=line.get_color(), label=f"{path.stem}, P99")
    for axis, (_, title) in zip(axes, PANELS):
        axis.set(title=title, xlabel="requests a second", yscale="log")
        axis.grid(True, which="both", alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(arguments.output, dpi=120)
    print(arguments.output)


if __name__ == "__main__":
    main()
