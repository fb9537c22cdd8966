#!/usr/bin/env python3
"""Perplexity of models pruned by each method at each sparsity, and how far they are from the dense model.

    scripts/pruning_quality.py NAME=DIR:CALIBRATION:EVALUATION:CTX [...] -o scripts/results/pruning_quality.json

DIR is a dense Hugging Face directory, CALIBRATION and EVALUATION are text files that share no text, CTX tokens make a
window. Everything runs on the CPU with build/spinfer; the result holds the commands and prints as a Markdown table.
"""

import argparse
import concurrent.futures
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("magnitude", "wanda", "sparsegpt")


def spinfer(args, *arguments):
    done = subprocess.run([args.program, *map(str, arguments), "--json", "--device", "cpu", "-t", str(args.threads)],
                          capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, arguments))}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def measure(args, directory, evaluation, ctx, *more):
    found = spinfer(args, "perplexity", "-m", directory, "-f", evaluation, "--ctx", ctx, *more)
    fields = ("ppl", "ppl_error", "tokens", "kl_divergence", "top1_agreement", "rms_delta_p")
    return {field: round(found[field], 5) for field in fields if field in found}


def rows_of(args, name, directory, calibration, evaluation, ctx):
    rows = [{"model": name, "method": "dense", "sparsity": 0, **measure(args, directory, evaluation, ctx)}]

    def row(sparsity, method):
        with tempfile.TemporaryDirectory(prefix="pruning-quality-") as folder:
            out = Path(folder) / "pruned"
            pruned = spinfer(args, "prune", "-m", directory, "-o", out, "--method", method, "--sparsity",
                             sparsity, "--calibration", calibration, "--calibration-samples", args.samples,
                             "--calibration-length", args.length)
            compared = measure(args, out, evaluation, ctx, "--compare", directory)
        found = {"model": name, "method": method, "sparsity": sparsity, "zeros": round(pruned["sparsity"], 5), **compared}
        print(json.dumps(found), file=sys.stderr, flush=True)
        return found

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        return rows + list(pool.map(row, *zip(*((s, m) for s in args.sparsities for m in METHODS))))


def table(rows):
    lines = ["| model | zeros | magnitude | Wanda | SparseGPT |", "|---|---|---|---|---|"]
    found = {(r["model"], r["sparsity"], r["method"]): f"{r['ppl']:.2f}" for r in rows}
    for model in dict.fromkeys(r["model"] for r in rows):
        lines.append(f"| {model} | dense: {found[model, 0, 'dense']} | | | |")
        for sparsity in sorted({r["sparsity"] for r in rows if r["model"] == model and r["sparsity"]}):
            cells = " | ".join(found[model, sparsity, method] for method in METHODS)
            lines.append(f"| | {100 * sparsity:.0f} % | {cells} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=DIR:CALIBRATION:EVALUATION:CTX")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--program", default=str(ROOT / "build" / "spinfer"))
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--jobs", type=int, default=1, help="pruned models measured at once")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.3, 0.4, 0.5, 0.6, 0.7])
    args = parser.parse_args()
    rows, models = [], {}
    for model in args.models:
        name, _, rest = model.partition("=")
        directory, calibration, evaluation, ctx = rest.split(":")
        models[name] = {"calibration": Path(calibration).name, "evaluation": Path(evaluation).name, "ctx": int(ctx)}
        rows += rows_of(args, name, directory, calibration, evaluation, int(ctx))
    result = {"what": "perplexity on the CPU after pruning every linear of the blocks; KL divergence in nats",
              "command": f"spinfer prune --method METHOD --sparsity S --calibration FILE --calibration-samples "
                         f"{args.samples} --calibration-length {args.length}; spinfer perplexity --ctx CTX --compare DENSE",
              "models": models, "rows": rows}
    head = json.dumps({name: value for name, value in result.items() if name != "rows"}, indent=1)
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    args.output.write_text(f'{head[:-2]},\n "rows": [\n{lines}\n ]\n}}\n')
    print(table(rows))


if __name__ == "__main__":
    main()
