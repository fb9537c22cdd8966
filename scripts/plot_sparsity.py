#!/usr/bin/env python3
"""Sparsity and bytes of a model, layer by layer: what `spinfer inspect` says, as a picture.

    spinfer inspect -m DIR --json | scripts/plot_sparsity.py -o figure.png

Left: zeros of each linear in each layer (a cross marks one that stays dense); right: bytes of the layers, dense and
packed. Needs matplotlib.
"""

import argparse
import json
import sys

from figures import pyplot


def kind_of(name):
    return name.split(".")[-2]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", nargs="?", type=argparse.FileType("r"), default=sys.stdin, help="default: stdin")
    parser.add_argument("-o", "--output", default="sparsity.png")
    args = parser.parse_args()
    try:
        report = json.load(args.report)
        linears, layers = report["linears"], report["layers"]
    except (ValueError, KeyError, TypeError):
        sys.exit(f"{sys.argv[0]}: {args.report.name} is not what `spinfer inspect --json` writes")
    kinds = list(dict.fromkeys(kind_of(linear["name"]) for linear in linears))
    per_layer = len(linears) // len(layers)

    plt = pyplot()

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 0.25 * len(layers) + 2.5))
    grid = [[0.0] * len(kinds) for _ in layers]
    for i, linear in enumerate(linears):
        row, column = i // per_layer, kinds.index(kind_of(linear["name"]))
        grid[row][column] = 100 * linear["sparsity"]
        if "dense_reason" in linear:
            left.plot(column, row, "x", color="#d93025")
    image = left.imshow(grid, vmin=0, vmax=100, cmap="Blues", aspect="auto")
    figure.colorbar(image, ax=left, label="zeros, %")
    left.set_xticks(range(len(kinds)), kinds, rotation=45, ha="right")
    left.set_ylabel("layer")
    places = range(len(layers))
    right.barh(places, [x["dense_bytes"] / 1e6 for x in layers], color="#dadce0", label="dense")
    right.barh(places, [x["packed_bytes"] / 1e6 for x in layers], height=0.5, color="#1a73e8", label="packed")
    right.invert_yaxis()
    right.set_xlabel("MB")
    right.set_ylabel("layer")
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    total = report["total"]
    figure.suptitle(f"{report['architecture']}: {100 * total['sparsity']:.1f} % zeros, linears "
                    f"{total['dense_bytes'] / 1e6:.2f} → {total['packed_bytes'] / 1e6:.2f} MB")
    figure.tight_layout()
    figure.savefig(args.output, dpi=130)
    print(args.output)


if __name__ == "__main__":
    main()
