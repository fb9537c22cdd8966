#!/usr/bin/env python3
"""Writes the reference results of Wanda and SparseGPT that tests/models/pruning_test.cpp compares with: NumPy, float64.

    pip install numpy safetensors
    make_pruning_goldens.py -o tests/data/pruning_goldens.safetensors

Of each case: "<case>.x" [n][k] fp16 inputs, "<case>.w" [m][k] fp16 weights, and for each sparsity in percent
"<case>.wanda.<percent>" [m][k] U8, 1 where a weight stays, and "<case>.sparsegpt_error.<percent>" [1] F64, the squared
Frobenius norm of X (W - W')^T with the pruned and corrected W' rounded to fp16. Wanda zeroes round(sparsity * k) weights of each row, SparseGPT round(sparsity * m * columns) of each block
of 128 columns; of equal scores the first go.
"""

import argparse

import numpy as np
from safetensors.numpy import save_file

BLOCK = 128
DAMPENING = 0.01
SPARSITIES = (0.3, 0.5, 0.6, 0.7)


def count_of(sparsity, size):
    return int(np.floor(sparsity * size + 0.5))


def make_case(rng, m, k, tokens, factors):
    """Correlated inputs of very different sizes: a few factors, noise, and a scale of each column."""
    mixed = rng.standard_normal((tokens, factors)) @ rng.standard_normal((factors, k)) / np.sqrt(factors)
    scale = np.exp(0.8 * rng.standard_normal(k))
    x = ((mixed + 0.3 * rng.standard_normal((tokens, k))) * scale).astype(np.float16)
    w = (rng.standard_normal((m, k)) / np.sqrt(k)).astype(np.float16)
    return x, w


def wanda_kept(w, x, sparsity):
    score = np.abs(w.astype(np.float64)) * np.sqrt((x.astype(np.float64) ** 2).sum(axis=0))
    kept = np.ones(w.shape, np.uint8)
    order = np.argsort(score, axis=1, kind="stable")[:, : count_of(sparsity, w.shape[1])]
    np.put_along_axis(kept, order, 0, axis=1)
    return kept


def sparsegpt(w, x, sparsity):
    """Frantar & Alistarh 2023, algorithm 1, with masks chosen block by block."""
    w, x = w.astype(np.float64).copy(), x.astype(np.float64)
    m, k = w.shape
    h = x.T @ x
    diagonal = np.diag(h).copy()
    dead = diagonal == 0
    mean = diagonal[~dead].mean()
    h[dead, dead] = mean
    w[:, dead] = 0
    h[np.arange(k), np.arange(k)] += DAMPENING * mean
    u = np.linalg.cholesky(np.linalg.inv(h)).T  # upper: inv(H) = U^T U
    for begin in range(0, k, BLOCK):
        end = min(begin + BLOCK, k)
        block, errors = w[:, begin:end].copy(), np.zeros((m, end - begin))
        score = (block / np.diag(u)[begin:end]) ** 2
        gone = np.zeros(block.size, bool)
        gone[np.argsort(score, axis=None, kind="stable")[: count_of(sparsity, block.size)]] = True
        gone = gone.reshape(block.shape)
        for i in range(end - begin):
            row = u[begin + i, begin:end]
            errors[:, i] = np.where(gone[:, i], block[:, i] / row[i], 0)
            block[:, i:] -= np.outer(errors[:, i], row[i:])
            block[gone[:, i], i] = 0
        w[:, begin:end] = block
        w[:, end:] -= errors @ u[begin:end, end:]
    return w


def reconstruction_error(w, pruned, x):
    difference = w.astype(np.float64) - pruned.astype(np.float16).astype(np.float64)
    return ((x.astype(np.float64) @ difference.T) ** 2).sum()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", required=True)
    args = parser.parse_args()
    rng = np.random.default_rng(7)
    tensors = {}
    cases = {"one_block": make_case(rng, 24, 80, 200, 12), "three_blocks": make_case(rng, 32, 300, 320, 40),
             "fewer_tokens_than_inputs": make_case(rng, 16, 130, 60, 20)}
    cases["one_block"][0][:, 17] = 0  # a dead input
    cases["one_block"][0][:, 40] = 0
    for name, (x, w) in cases.items():
        tensors[f"{name}.x"], tensors[f"{name}.w"] = x, w
        for sparsity in SPARSITIES:
            percent = round(100 * sparsity)
            tensors[f"{name}.wanda.{percent}"] = wanda_kept(w, x, sparsity)
            error = reconstruction_error(w, sparsegpt(w, x, sparsity), x)
            tensors[f"{name}.sparsegpt_error.{percent}"] = np.array([error])
    save_file(tensors, args.output)


if __name__ == "__main__":
    main()
