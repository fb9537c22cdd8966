#!/usr/bin/env python3
"""Writes the measured figures of README.md from the files in scripts/results.

    scripts/readme_figures.py            rewrites them
    scripts/readme_figures.py --check    says what differs from the files; exit status 1 if anything does (a test runs this)
    scripts/readme_figures.py --take DIR first puts what scripts/gpu_check.sh left in DIR, NAME.json, in the place of h200_NAME.json

What lies between `<!-- figures: NAME -->` and `<!-- end of figures -->` is written by the function NAME below and by nobody
else: change the sentence here, the number by measuring again.
"""

import argparse
import difflib
import json
import math
import re
import statistics
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "scripts" / "results"
WIDTH = 130
BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end of figures -->\n)", re.DOTALL)


# ---- reading

def load(name):
    return json.loads((RESULTS / name).read_text())


def load_lines(name):
    return [json.loads(line) for line in (RESULTS / name).read_text().splitlines()]


def link(name):
    """A link to a result file; a missing one is an error here rather than a dead link there."""
    if not (RESULTS / name).exists():
        raise FileNotFoundError(RESULTS / name)
    return f"[{name}](scripts/results/{name})"


def one_commit(*documents):
    commits = {document["commit"] for document in documents}
    if len(commits) != 1:
        raise ValueError(f"files of several commits behind one statement: {sorted(commits)}")
    return commits.pop()


def latency_rows(document):
    return document.get("rows", [document])


def row_of_batch(document, batch):
    return next(row for row in latency_rows(document) if row["batch_size"] == batch)


def step(row, side):
    return row[side]["tpot_ms_median"]


def gain(row):
    return step(row, "dense") / step(row, "sparse")


def run_of(document, ranks):
    """The run of a model on so many ranks that has a dense side."""
    return next(run for run in document["runs"] if run["tp"] == ranks and "dense" in latency_rows(run)[0])


# ---- arithmetic

def geometric_mean(values):
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values))


class Speedups:
    """The rows of a kernel benchmark's file: speed-ups over the better cuBLAS."""

    def __init__(self, name):
        self.file = load(name)
        self.rows = self.file["rows"]

    def select(self, n, sparsity, kernel="auto", shape=None):
        found = [row for row in self.rows if row["n"] == n and row["sparsity"] == sparsity and
                 row["kernel"].startswith(kernel) and (shape is None or (row["m"], row["k"]) == shape)]
        if not found:
            raise ValueError(f"no rows with n={n} sparsity={sparsity} kernel={kernel} shape={shape}")
        return found

    def mean(self, n, sparsity, **which):
        return geometric_mean(row["speedup"] for row in self.select(n, sparsity, **which))

    def means(self, n, sparsities, **which):
        return " / ".join(f"{self.mean(n, sparsity, **which):.2f}" for sparsity in sparsities)

    def best_mean(self, n, sparsity):
        """Of the best kernel for each shape."""
        best = {}
        for row in self.select(n, sparsity, kernel=""):
            shape = row["m"], row["k"]
            best[shape] = max(best.get(shape, 0), row["speedup"])
        return geometric_mean(best.values())


# ---- writing

def table(header, rows):
    lines = ["| " + " | ".join(map(str, header)) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def paragraph(text):
    return textwrap.fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def percent(sparsity):
    return f"{round(100 * sparsity)} %"


def times(ratio):
    return f"{ratio:.2f}×"


def speedup_table(first, tokens, sparsities, value):
    header = [first] + [percent(sparsities[0]) + " zeros"] + [percent(s) for s in sparsities[1:]]
    return table(header, [[n] + [times(value(n, s)) for s in sparsities] for n in tokens])


# ---- the blocks, in the order of the README

LATENCY_MODELS = ("llama-2-7b", "opt-13b", "opt-30b")
TENSOR_PARALLEL_MODELS = {"opt-30b": "OPT-30B", "opt-66b": "OPT-66B", "llama-2-70b": "LLaMA-2-70B"}


def cpu_linear():
    measured = load("cpu_linear_amd_epyc.json")
    rows = measured["summary"]
    shapes = list(dict.fromkeys((row["m"], row["k"]) for row in rows))
    sparsities = sorted({row["sparsity"] for row in rows})
    lines = []
    for m, k in shapes:
        of = {row["sparsity"]: row for row in rows if (row["m"], row["k"]) == (m, k)}
        lines.append([f"{m}×{k}"] + [times(of[s]["speedup_median_of_paired_batches"]) for s in sparsities] +
                     [f"{of[0.5]['dense_gbps']:.1f} of {of[0.5]['read_gbps']:.1f}"])
    header = ["M×K", percent(sparsities[0]) + " zeros"] + [percent(s) for s in sparsities[1:]]
    runs = {}
    for row in measured["raw"]:
        ratio = statistics.median(dense / us for us, dense in zip(row["us_batches"], row["dense_us_batches"]))
        runs.setdefault((row["m"], row["k"], row["sparsity"]), []).append(ratio)
    spread = max(max(of) / min(of) for of in runs.values())
    earlier = [row["speedup_median_of_paired_batches"]
               for row in load("cpu_linear_intel_r_xeon_r_processor.json")["summary"]]
    return table(header + ["dense, GB/s of the read loop's"], lines) + "\n\n" + paragraph(
        f"""The machine is shared: of the three runs of a cell the best ratio is up to {spread:.1f} times the
        worst. An earlier kernel was {min(earlier):.2f} to {times(max(earlier))} as fast as dense on two cores of an Intel Xeon
        ({link("cpu_linear_intel_r_xeon_r_processor.json")}).""")


def cpu_tokens():
    rows = load("cpu_linear_tokens_amd_epyc.json")["summary"]
    mean = {n: statistics.geometric_mean(row["speedup_median_of_paired_batches"] for row in rows if row["n"] == n)
            for n in (1, 2, 8)}
    return paragraph(f"""That is one token at a time. Several at once are bound by arithmetic on a CPU, and decoding comes on top: on two
        cores of an AMD EPYC, matrices of 4096×4096 and 4096×11008 with 50 to 70 % zeros are {times(mean[1])} as fast as dense
        with one token, {times(mean[2])} with two and {times(mean[8])} with eight
        ({link("cpu_linear_tokens_amd_epyc.json")}). Larger batches gain memory there, not speed.""")


def linear_large():
    large = Speedups("h200_linear_large.json")
    shapes = {(row["m"], row["k"]) for row in large.rows}
    text = paragraph(f"""TCA-BME against the better of autotuned cuBLASLt and cublasGemmEx on the same weights, cold, both timed in
        one run; geometric mean over {len(shapes)} shapes of OPT and LLaMA models from 13824×5120 to 28672×8192, at commit
        {one_commit(large.file)}. From {link("h200_linear_large.json")} (`gpu_linear_bench --shapes large …`, read bandwidth
        {large.file["read_gbps"] / 1000:.2f} TB/s):""")
    return text + "\n\n" + speedup_table("tokens (N)", (1, 8, 16, 32, 64), (0.4, 0.5, 0.6, 0.7), large.mean)


def linear_paper():
    paper, cusparse = Speedups("h200_linear_paper.json"), Speedups("h200_linear_cusparse.json")
    shapes = {(row["m"], row["k"]) for row in paper.rows}
    half = (0.5, 0.6, 0.7)
    slower = [1 / cusparse.mean(8, s, kernel="cusparse", shape=shape)
              for s in (0.5, 0.7) for shape in ((4096, 4096), (8192, 8192))]
    return paragraph(f"""On the {len(shapes)} matrices of the paper's Figure 10 ([drawn](scripts/results/h200_figure10.png) by
        `scripts/plot_kernel_bench.py` from {link("h200_linear_paper.json")}, at commit {one_commit(paper.file)}), small ones
        included, it is {paper.means(8, half)} times as fast as cuBLAS with 8 tokens and 50 / 60 / 70 % zeros,
        {paper.means(16, half)} times with 16 and {paper.means(32, half)} times with 32. The published algorithm
        (`--kernel smbd`) has {paper.means(8, half, kernel="smbd")} times cuBLAS's speed there with 8 tokens; cuSPARSE's CSR
        takes {min(slower):.0f} to {max(slower):.0f} times as long as cuBLAS on 4096×4096 and 8192×8192 with 8 tokens and 50
        or 70 % zeros ({link("h200_linear_cusparse.json")}).""")


def linear_prefill():
    prefill = Speedups("h200_linear_prefill.json")
    return speedup_table("prompt tokens (N)", (128, 256, 512, 1024, 2048), (0.5, 0.6, 0.7), prefill.best_mean)


def linear_small():
    small, half = Speedups("h200_linear_small.json"), (0.5, 0.6, 0.7)
    files = [load(f"h200_linear_{name}.json") for name in ("large", "paper", "prefill", "small")]
    slowest = min(row["prepare_gbps"] for file in files for row in file["rows"] if row.get("prepare_gbps"))
    square, larger = (4096, 4096), (5120, 5120)
    return paragraph(f"""Small matrices gain less, as loading the first weights and adding up the split take their time
        ({link("h200_linear_small.json")}): 4096×4096 {small.means(8, half, shape=square)} times with 8 tokens and
        {small.means(16, half, shape=square)} with 16, 5120×5120 {small.means(8, half, shape=larger)} and
        {small.means(16, half, shape=larger)}. Making the device layout of a weight reads at least {int(slowest)} GB/s of
        packed bytes.""")


def latency():
    lines = []
    for model in LATENCY_MODELS:
        for row in latency_rows(load(f"h200_latency_{model}.json")):
            sparse, dense = row["sparse"], row["dense"]
            lines.append([model, row["batch_size"], f"{step(row, 'sparse'):.2f}", f"{step(row, 'dense'):.2f}", times(gain(row)),
                          f"{sparse['floor_pct']:.0f}", f"{dense['floor_pct']:.0f}", f"{sparse['peak_bytes'] / 1e9:.1f}",
                          f"{dense['peak_bytes'] / 1e9:.1f}"])
    return table(["model", "batch", "sparse, ms a step", "dense", "gain", "sparse, % of byte floor", "dense", "peak memory, GB",
                  "dense"], lines)


def latency_parts():
    llama, prompt = load("h200_latency_llama-2-7b.json"), load("h200_latency_llama-2-7b_prompt2048.json")
    memory = load("h200_latency_opt-13b_length256.json")
    row = row_of_batch(llama, 8)

    def parts(side):
        ms = row[side]["breakdown_ms"]
        return (f"{side} linears {ms['linear']:.2f}, attention {ms['attention']:.2f}, norms {ms['norm']:.2f}, other ops "
                f"{ms['other']:.2f}, sampling {ms['sampling']:.2f} of {ms['step']:.2f} ms")

    sparse, dense = memory["sparse"], memory["dense"]
    share = sparse["peak_bytes"] / dense["peak_bytes"]
    floor = (sparse["weights_packed_bytes"] + sparse["kv_bytes"]) / (dense["weights_bytes"] + dense["kv_bytes"])
    return "\n".join([
        paragraph("""Where a step of LLaMA-2-7B at batch 8 goes (what it is shorter without each kind of op; sparse linears do the
            norms and the gate on their way):"""),
        parts("sparse") + ";", parts("dense"),
        "(ops overlap, so the parts need not add up; these are shorter runs than the table's, and a little faster).",
        f"A prompt of 2048 tokens takes {prompt['sparse']['prefill_ms']:.1f} ms sparse and {prompt['dense']['prefill_ms']:.1f} dense.",
        paragraph(f"""OPT-13B with 16 sequences of 256 tokens takes {sparse['peak_bytes'] / 1e9:.1f} GB against
            {dense['peak_bytes'] / 1e9:.1f} dense ({100 * share:.0f} %), {sparse['kv_bytes'] / 1e9:.1f} GB of either being keys and
            values: with these, weights of the formula's size alone would be {100 * floor:.1f} %."""),
    ])


def loading():
    file = load("h200_load_llama-2-7b.json")
    packed, dense = file["packed"], file["hugging_face_fp16"]
    return paragraph(f"""A packed LLaMA-2-7B in the page cache is resident in {packed["load_seconds"]:.1f} s,
        {packed["load_gbps"]:.1f} GB/s of packed bytes; a Hugging Face directory of the same model, packed on the GPU, in
        {dense["load_seconds"]:.1f} s ({link("h200_load_llama-2-7b.json")}).""")


def agreement():
    models = load("h200_hf_agreement.json")["models"]
    opt, llama = models["opt-1.3b"], models["llama-2-7b"]

    def ours(model):
        return f"{max(model['spinfer_short']['mean'], model['spinfer_long']['mean']):.4f}"

    return paragraph(f"""Log-probabilities agree with Hugging Face transformers in fp32 on models of real size
        (`scripts/hf_agreement.py`, {link("h200_hf_agreement.json")}): mean difference {ours(opt)} for OPT-1.3B and {ours(llama)} for
        LLaMA-2-7B; transformers' own fp16 differs by {opt["transformers_fp16"]["mean"]:.4f} and
        {llama["transformers_fp16"]["mean"]:.4f}.""")


def tensor_parallel():
    lines = []
    for model, name in TENSOR_PARALLEL_MODELS.items():
        runs = [run for run in load(f"h200_tp_{model}.json")["runs"] if "dense" in latency_rows(run)[0]]
        for run in sorted(runs, key=lambda run: run["tp"]):
            for row in latency_rows(run):
                lines.append([name, run["tp"], row["batch_size"], f"{step(row, 'sparse'):.2f}", f"{step(row, 'dense'):.2f}",
                              times(gain(row))])
    opt, llama = load("h200_tp_opt-30b.json"), load("h200_tp_llama-2-70b.json")
    one, two = (step(row_of_batch(run_of(opt, ranks), 16), "sparse") for ranks in (1, 2))
    ms = next(row["sparse"]["breakdown_ms"] for run in llama["runs"] for row in latency_rows(run) if "breakdown_ms" in row["sparse"])
    alone = latency_rows(load("h200_tp_llama-2-70b_one_gpu.json")["runs"][0])[0]
    return table(["model", "GPUs", "batch", "sparse, ms a step", "dense", "gain"], lines) + "\n\n" + "\n".join([
        paragraph(f"""Two GPUs decode OPT-30B at batch 16 {one / two:.2f} times as fast as one. Of a LLaMA-2-70B step at batch 16
            (what it is shorter without each kind of op, [drawn](scripts/results/h200_tp_breakdown.png) by
            `scripts/plot_breakdown.py`): linears {ms['linear']:.1f}, attention {ms['attention']:.1f}, norms {ms['norm']:.1f},
            communication {ms['communication']:.1f} of {ms['step']:.1f} ms."""),
        paragraph(f"""LLaMA-2-70B at 60 % zeros also runs on **one** H200 with {alone['batch_size']} sequences of
            {alone['input_len'] + alone['output_len']} tokens: {alone['sparse']['peak_bytes'] / 1e9:.0f} GB,
            {step(alone, 'sparse'):.1f} ms a step (the median of a run with some far slower steps, with an earlier decode kernel);
            its dense weights alone are {alone['sparse']['weights_dense_bytes'] / 1e9:.0f} GB."""),
    ])


def all_reduce():
    file = load("h200_tp_all_reduce.json")
    row = next(row for row in file["rows"] if row["bytes"] == 16 * 8192 * 2)
    norm = next(row for row in file["with_add_norm"] if (row["n"], row["d"]) == (16, 8192))
    return paragraph(f"""The all-reduce of 16 × 8192 fp16 inside a graph takes {row["ours"]["us"]:.1f} µs ({row["nccl"]["us"]:.1f} µs
        by ncclAllReduce), from {link("h200_tp_all_reduce.json")} (`gpu_collective_bench`); with the residual addition and the norm
        behind it {norm["two_ops_us"]:.1f} µs as two ops and {norm["one_op_us"]:.1f} µs as the one it is. Sums above 1 MiB are NCCL's,
        which for two ranks have the same bits.""")


def tensor_parallel_tests():
    file = load("h200_tp_tests.json")

    def differences(part):
        found = [re.search(r"mean ([\d.]+), worst ([\d.]+) nat", said) for said in file[part]["said"]]
        found = [(float(match[1]), float(match[2])) for match in found if match]
        return len(found), max(mean for mean, _ in found), max(worst for _, worst in found)

    _, mean, worst = differences("engine_gpu_tests")
    models, golden_mean, golden_worst = differences("engine_tests")
    return paragraph(f"""Two GPUs give one GPU's log-probabilities on the demo models within {mean:.4f} nat on average, {worst:.4f} at
        worst, and transformers' on {models} golden models within {golden_mean:.4f} and {golden_worst:.4f}; greedy tokens are the same
        up to near-ties, and with `--deterministic` all bits from run to run, with and without graphs
        ({link("h200_tp_tests.json")}, at {one_commit(file)}).""")


def tensor_parallel_load():
    file = load("h200_tp_load.json")
    of = {(run["ranks"], run["from"]): run for run in file["runs"]}
    storage, cache, alone = of[2, "storage"], of[2, "page cache"], of[1, "page cache"]
    return paragraph(f"""A packed LLaMA-2-7B ({file["file_bytes"] / 1e9:.1f} GB) is resident on two ranks in
        {storage["load_seconds"]:.1f} s from a disk that a plain loop reads at {file["storage_read_gbps"]:.2f} GB/s:
        {storage["file_gbps"]:.2f} GB/s, {max(storage["rank_gbps"]):.2f} a rank. From the page cache it takes
        {cache["load_seconds"]:.1f} s ({cache["file_gbps"]:.1f} GB/s), on one rank {alone["load_seconds"]:.1f} s
        ({link("h200_tp_load.json")}).""")


def tensor_parallel_faults():
    file = load("h200_tp_faults.json")
    throws, hangs, sigterm = file["throws"], file["hangs"], file["sigterm"]
    return paragraph(f"""A server on two GPUs whose rank throws under load, with clients coming and vanishing, answers all of them with
        the cause and has ended with status {throws["status"]} {throws["seconds_failure_to_end"]:.1f} s later (3 of them for probes to
        see the 503); one whose rank hangs has ended {hangs["seconds_failure_to_end"]:.1f} s after the watchdog found it. SIGTERM in
        mid-generation ends it with status {sigterm["status"]} in {sigterm["seconds_to_end"]:.1f} s, of which it drains for 0.5
        ({link("h200_tp_faults.json")}).""")


def tensor_parallel_serve():
    file, lines = load("h200_tp_serve.json"), []
    # What scripts/tensor_parallel_check.py writes, or what was kept of what it printed.
    whole = {"commit": file.get("commit"),
             "runs": [{"weights": side, **run} for side in ("sparse", "dense") for run in file.get(side, {}).get("runs", [])]}
    for measurement in file.get("measurements", [whole]):
        for run in measurement["runs"]:
            rate = "all at once" if run["request_rate"] == "inf" else run["request_rate"]
            lines.append([measurement["commit"], run["weights"], rate, run["completed"], f"{run['output_throughput']:.0f}",
                          f"{run['output_throughput_per_gpu']:.0f}", f"{run['median_ttft_ms']:.0f}", f"{run['p99_ttft_ms']:.0f}",
                          f"{run['median_tpot_ms']:.1f}"])
    return table(["commit", "weights", "requests/s asked", "answered", "output tokens/s", "a GPU", "TTFT median, ms", "P99",
                  "TPOT median, ms"], lines)


def serving_offline():
    files = {name: load(f"h200_serving_{name}.json") for name in ("capped_18gb", "capped_24gb", "full")}
    memory = {"capped_18gb": "18 GB", "capped_24gb": "24 GB", "full": "all"}
    lines = []
    for name, file in files.items():
        for side in ("sparse", "dense"):
            best = file[side]["best"]
            lines.append([memory[name], side, best["max_num_batched_tokens"], f"{best['decode_batch_mean']:.1f}",
                          f"{best['decode_step_ms_mean']:.2f}", f"{best['kv_blocks'] * 16:,}",
                          f"{best['saturated_output_throughput']:.0f}"])
    gap = load("h200_serving_gap.json")["sparse"]
    small, middle, full = files.values()
    best = full["sparse"]["best"]
    used = best["kv_bytes"] * best["kv_blocks_most_used"] / best["kv_blocks"]
    return table(["memory", "weights", "tokens of a step at most", "sequences in a decode step", "ms a decode step",
                  "KV cache, tokens", "output tokens/s"], lines) + "\n\n" + "\n".join([
        paragraph(f"""With 18 GB the sparse model holds {small["kv_tokens_ratio"]:.2f} times the tokens and makes
            {small["speedup"]:.2f} times as many a second."""),
        paragraph(f"""With 24 GB the sparse model holds {middle["kv_tokens_ratio"]:.2f} times the tokens and makes
            {middle["speedup"]:.2f} times as many a second (at commit {one_commit(middle)}, with a slower decode kernel)."""),
        paragraph(f"""With all of the memory it makes {full["speedup"]:.2f} times as many: keys and values
            ({used / 1e9:.0f} GB of {best["most_running"]} requests) are
            most of what a step reads, and with so many tokens a step the linears are bound by arithmetic, where zeros do not help."""),
        paragraph(f"""Before a decode step of 64 requests ({gap["decode_step_ms_mean"]:.2f} ms) the GPU waits
            {1000 * gap["host_gap_ms_mean"]:.0f} µs for the host, {gap["host_gap_pct"]:.2f} %, by its own clock."""),
    ])


def serving_http():
    lines = []
    for side in ("sparse", "dense"):
        for run in load_lines(f"h200_serving_rates_{side}.jsonl"):
            rate = "all at once" if run["request_rate"] == "inf" else f"{float(run['request_rate']):.2f}"
            lines.append([side, rate, f"{run['request_throughput']:.2f}", f"{run['output_throughput']:.0f}",
                          f"{run['median_ttft_ms']:.0f}", f"{run['p99_ttft_ms']:.0f}", f"{run['median_tpot_ms']:.1f}"])
    vanish = load("h200_serving_vanish.json")
    ratio = vanish["p99_ratio"]
    return table(["weights", "requests/s asked", "answered", "output tokens/s", "TTFT median, ms", "P99", "TPOT median, ms"],
                 lines) + "\n\n" + paragraph(f"""While {vanish["vanished"]} clients come and vanish beside {vanish["clients"]} steady
        ones, the P99 of the latter is {ratio["e2el"]:.2f} times that without them for a whole request, {ratio["ttft"]:.2f} times for
        the first token and {ratio["itl"]:.2f} times between two tokens.""")


def pruning():
    rows = load("pruning_quality.json")["rows"]
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        of = {(row["method"], row["sparsity"]): row["ppl"] for row in rows if row["model"] == model}
        for sparsity in (0.5, 0.6, 0.7):
            lines.append([model, f"{of['dense', 0]:.2f}", percent(sparsity)] +
                         [f"{of[method, sparsity]:.2f}" for method in ("magnitude", "wanda", "sparsegpt")])
    timing = load("h200_pruning_timing.json")
    seconds = {name: method["seconds_all_layers"] for name, method in timing["methods"].items()}
    return table(["model", "dense", "zeros", "magnitude", "Wanda", "SparseGPT"], lines) + "\n\n" + paragraph(f"""With
        {timing["samples"]} samples of {timing["length"]} tokens, a model of LLaMA-2-7B's shape takes {seconds["wanda"]:.0f} s by
        Wanda and {seconds["sparsegpt"]:.0f} s by SparseGPT on one H200 with {timing["cpus"]} CPU cores, reading and writing (in
        memory) included ({link("h200_pruning_timing.json")}, `scripts/pruning_timing.py`).""")


def goals():
    """What falls short of its goal; what reaches it drops out."""
    decode, small, prefill = (Speedups(f"h200_linear_{name}.json") for name in ("large", "small", "prefill"))
    llama, opt = load("h200_latency_llama-2-7b.json"), load("h200_latency_opt-13b.json")
    memory, prompt = load("h200_latency_opt-13b_length256.json"), load("h200_latency_llama-2-7b_prompt2048.json")
    full = load("h200_serving_full.json")
    at_least = [("a large matrix, " + f"{n} tokens, {percent(s)} zeros", decode.mean(n, s), goal)
                for n, of in ((8, (1.45, 1.6, 1.75)), (16, (1.45, 1.6, 1.75)), (32, (1.3, 1.4, 1.45)), (64, (1.0, 1.0, 1.05)))
                for s, goal in zip((0.5, 0.6, 0.7), of)]
    at_least += [(f"{m}×{m}, {n} tokens, 50 % zeros", small.mean(n, 0.5, shape=(m, m)), 1.3) for m in (4096, 5120) for n in (8, 16)]
    at_least += [(f"a large matrix, {n} tokens, {percent(s)} zeros", prefill.best_mean(n, s), 0.9 if n < 512 else 0.95)
                 for n in (128, 256, 512, 1024, 2048) for s in (0.6,)]
    at_least += [(f"a step of {model['model']} at batch {n}", gain(row_of_batch(model, n)), 1.4)
                 for model in (llama, opt) for n in (8, 16, 32)]
    at_least += [("a prompt of 2048 tokens, " + prompt["model"], prompt["dense"]["prefill_ms"] / prompt["sparse"]["prefill_ms"], 0.9),
                 ("output tokens/s of a server with all of the memory", full["speedup"], 1.25)]
    lines = [[what, times(value) if round(value, 2) < goal else f"{value:.3f}×", times(goal)]
             for what, value, goal in at_least if value < goal]
    for what, value, goal in (("ms a step of llama-2-7b at batch 8", step(row_of_batch(llama, 8), "sparse"), 2.7),
                              ("ms a step of opt-13b at batch 8", step(row_of_batch(opt, 8), "sparse"), 4.7)):
        if value > goal:
            lines.append([what, f"{value:.3f}", goal])
    share = memory["sparse"]["peak_bytes"] / memory["dense"]["peak_bytes"]
    if share > 0.53:
        lines.append(["peak memory of opt-13b, 16 sequences of 256 tokens", percent(share), "53 %"])
    return table(["what falls short of its goal", "sparse : dense", "goal"], lines)


BLOCKS = {block.__name__: block for block in (
    cpu_linear, cpu_tokens, linear_large, linear_paper, linear_prefill, linear_small, latency, latency_parts, loading, agreement,
    tensor_parallel, all_reduce, tensor_parallel_tests, tensor_parallel_load, tensor_parallel_faults, tensor_parallel_serve,
    serving_offline, serving_http, pruning, goals)}


def take(results):
    """Replaces result files by those of a check on a GPU. All of them of one commit, a clean one."""
    found = {path: RESULTS / f"h200_{path.name}" for path in sorted(results.glob("*.json*"))}
    for path in [path for path, target in found.items() if not target.exists()]:
        print(f"{path}: left there, there is no {found.pop(path).name}")
    documents = {path: [json.loads(line) for line in path.read_text().splitlines()] if path.suffix == ".jsonl"
                 else [json.loads(path.read_text())] for path in found}
    commit = one_commit(*(document for several in documents.values() for document in several)) if found else ""
    if not re.fullmatch("[0-9a-f]{7,40}", commit):
        raise SystemExit(f"{results}: no results of a commit ({commit or 'no files'})")
    for path, target in found.items():
        target.write_bytes(path.read_bytes())
        print(f"{target.relative_to(ROOT)}: now of {commit}")


def write_blocks(text):
    """The README with all blocks written anew, and the blocks' names."""
    names = []

    def fill(match):
        name = match[2]
        if name not in BLOCKS:
            raise SystemExit(f"figures: {name}: scripts/readme_figures.py has no such block")
        names.append(name)
        return match[1] + "\n" + BLOCKS[name]() + "\n\n" + match[3]

    return BLOCK.sub(fill, text), names


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if a figure is not its file's")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--take", metavar="DIR", type=Path, help="put the results there first")
    args = parser.parse_args()
    if args.take:
        take(args.take)
    old = args.readme.read_text()
    new, names = write_blocks(old)
    if not names:
        raise SystemExit(f"{args.readme}: has no blocks of figures")
    if not args.check:
        args.readme.write_text(new)
        return
    difference = list(difflib.unified_diff(old.splitlines(), new.splitlines(), str(args.readme), "scripts/results", lineterm=""))
    print("\n".join(difference))
    if difference:
        sys.exit("README.md does not say what the result files do: run scripts/readme_figures.py")
    print(f"{len(names)} blocks of figures are their files'")


if __name__ == "__main__":
    main()
