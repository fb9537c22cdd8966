#!/usr/bin/env python3
"""Serving figures of one GPU, sparse and dense: throughput, latency over request rate, what vanishing clients cost.

    scripts/serving_check.py --config DIR/config.json --trace TRACE.csv -o OUT [--program build/spinfer] [--only PARTS]

--config  the model's shape, for random weights; the tokenizer's files lie beside it
--trace   lengths of the requests (Azure LLM inference trace 2023, conversation); every --every-th row is taken
--only    some of capped, full, gap, rates, vanish (the default, in this order)

capped    offline throughput with --cap-gb of memory, while requests wait: each side tries all --settings (most requests at
          once × tokens of a step) and is given its best
full      the same with all of the device's memory
gap       64 requests that decode together: how long the device waits for the host, by its own clock
rates     a server with the cap for each side, loaded over HTTP: first as fast as it can, then at shares of that rate
vanish    a server that answers steady clients, alone and while a hundred others vanish

Each part writes OUT/serving_PART.json (of capped with the memory in its name), but rates the lines of OUT/serving_rates_SIDE.jsonl, as scripts/plot_serving.py reads
them. A part that fails does not end the others; the exit status is 1 then. All parts take some two and a half minutes of
one H200.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("capped", "full", "gap", "rates", "vanish")
SIDES = ("sparse", "dense")


def percentile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))]


def readable(document):
    """JSON with lists of numbers on one line each."""
    text = json.dumps(document, indent=1)
    return re.sub(r"\[\s+([^\[\]{}\"]*?)\s+\]", lambda found: "[" + re.sub(r"\s+", " ", found[1]) + "]", text) + "\n"


def run_parts(check, parts, done):
    """Calls check's method of each part's name, then done(part, what it found and the environment, or None, seconds). A part
    that fails does not end the others. True if none failed."""
    passed = True
    for part in parts:
        begin = time.monotonic()
        try:
            found = getattr(check, part)()
        except Exception as error:  # noqa: BLE001  whatever it is, the other parts still count
            passed = False
            check.say(f"{part} FAILED: {type(error).__name__}: {error}")
            continue
        seconds = time.monotonic() - begin
        done(part, {**check.environment(), **found, "seconds": round(seconds, 1)} if found else None, seconds)
    return passed


class Check:
    def __init__(self, args):
        self.args, self.begin = args, time.monotonic()
        self.trace = args.out / "trace.csv"
        rows = args.trace.read_text().splitlines()
        self.trace.write_text("\n".join([rows[0], *rows[1::args.every]]) + "\n")
        self.total_bytes = self.device_bytes()
        self.best = {}

    def device_bytes(self):
        if self.args.device == "cpu":
            return 0
        out = subprocess.run(["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
                             capture_output=True, text=True, check=True).stdout
        return int(out.splitlines()[0]) << 20

    def environment(self):
        found = {"commit": os.environ.get("SPINFER_COMMIT", "unknown"), "model": self.args.model,
                 "sparsity": self.args.sparsity, "trace": self.args.trace.name, "trace_every": self.args.every}
        if self.total_bytes:
            out = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
                                 capture_output=True, text=True).stdout
            name, driver = out.splitlines()[0].split(", ")
            cuda = subprocess.run(["nvidia-smi"], capture_output=True, text=True).stdout
            found.update(device=name, driver=driver, cuda=cuda.partition("CUDA Version:")[2].split()[0])
        return found

    def say(self, text):
        print(f"{time.monotonic() - self.begin:6.1f} s  {text}", flush=True)

    # ---- the program

    def weights(self, side):
        return ["--config", self.args.config, "--sparsity", self.args.sparsity if side == "sparse" else 0]

    def memory(self, capped):
        if capped and self.total_bytes:
            later = 80e6  # kernels that are loaded and graphs that are recorded once the KV cache has its memory
            return ["--gpu-memory-utilization", round((self.args.cap_gb * 1e9 - later) / self.total_bytes, 5)]
        return []

    def spinfer(self, *arguments, timeout=60):
        command = [self.args.program, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def throughput(self, side, setting, prompts, capped, *more):
        seqs, tokens = setting
        arguments = ["bench", "throughput", *self.weights(side), "--device", self.args.device, "--max-num-seqs", seqs,
                     "--max-num-batched-tokens", tokens, "--num-prompts", prompts, *self.memory(capped), *more, "--json"]
        begin = time.monotonic()
        figures = json.loads(self.spinfer(*arguments))["sparse"]  # what runs; with --sparsity 0 it is dense
        self.say(f"{side} {seqs}×{tokens}: {figures['saturated_output_throughput']:.0f} tokens/s over "
                 f"{figures['saturated_s']:.1f} s (the whole {figures['output_throughput']:.0f} over "
                 f"{figures['duration_s']:.1f}), {time.monotonic() - begin:.1f} s with {figures['warm_up_s']:.1f} of warming up; "
                 f"{figures['completed']} answered, {figures['kv_blocks']} blocks, "
                 f"at most {figures['most_running']} running, decode steps of {figures['decode_batch_mean']:.1f} in "
                 f"{figures['decode_step_ms_mean']:.2f} ms, {figures['preemptions']} preemptions")
        return {"max_num_seqs": seqs, "max_num_batched_tokens": tokens,
                "command": " ".join(["spinfer", *map(str, arguments)]).replace(f"{self.args.out}/", ""), **figures}

    # ---- parts

    def search(self, name, capped, settings, duration):
        found = {}
        for side in SIDES:
            tried = [self.throughput(side, setting, self.args.prompts, capped, "--trace", self.trace, "--duration",
                                     duration, "--samples") for setting in settings]
            best = max(tried, key=lambda run: run["saturated_output_throughput"])
            for run in tried:
                if run is not best:
                    run.pop("samples", None)
            found[side] = {"best": best, "tried": tried}
            if capped:
                self.best[side] = (best["max_num_seqs"], best["max_num_batched_tokens"])
        best = {side: found[side]["best"] for side in SIDES}
        found["speedup"] = best["sparse"]["saturated_output_throughput"] / best["dense"]["saturated_output_throughput"]
        found["kv_tokens_ratio"] = best["sparse"]["kv_blocks"] / best["dense"]["kv_blocks"]
        self.say(f"{name}: {found['speedup']:.2f} × the tokens/s, {found['kv_tokens_ratio']:.2f} × the KV tokens")
        return found

    def capped(self):
        return {"cap_bytes": int(self.args.cap_gb * 1e9), **self.search("capped", True, self.args.settings, self.args.duration)}

    def full(self):
        return self.search("full", False, self.args.full_settings, self.args.full_duration)

    def gap(self):
        found = {}
        for side in SIDES:
            run = self.throughput(side, (64, 2048), 64, False, "--input-len", 64, "--output-len", self.args.gap_tokens)
            self.say(f"{side}: the device waits {run['host_gap_ms_mean']:.4f} ms ({run['host_gap_pct']:.2f} %) before a step, "
                     f"P99 {run['host_gap_ms_p99']:.4f} ms")
            found[side] = run
        return found

    def rates(self):
        for side in self.args.rate_sides.split(","):
            with Server(self, side, self.best.get(side, self.args.settings[0])) as server:
                self.say(f"{side} server ready")
                runs = [server.load("inf", self.args.rate_prompts)]
                most = runs[0]["request_throughput"]
                for share in self.args.shares:
                    rate = round(most * share, 3)
                    runs.append(server.load(rate, max(8, int(rate * self.args.rate_seconds))))
                    runs[-1]["share_of_saturation"] = share
                for run in runs:
                    run.update(self.environment(), side=side, server=server.command)
            (self.args.out / f"serving_rates_{side}.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))

    def vanish(self):
        with Server(self, "sparse", self.best.get("sparse", self.args.settings[0])) as server:
            self.say("server ready")
            asyncio.run(steady_clients(server.port, lambda rounds: rounds == 1, self.args.vanish_tokens))  # awake
            calm, _ = asyncio.run(disturb(server.port, 0, self.args.vanish_tokens))
            loud, gone = asyncio.run(disturb(server.port, 100, self.args.vanish_tokens))
            left = asyncio.run(metrics(server.port))
        figures = {"clients": 8, "vanished": gone, "max_tokens": self.args.vanish_tokens, "command": server.command}
        for name, streams in (("undisturbed", calm), ("among_vanishing", loud)):
            series = {"ttft": [times[0] for times in streams], "e2el": [times[-1] for times in streams],
                      "itl": [b - a for times in streams for a, b in zip(times, times[1:])]}
            figures[name] = {f"{q}_{key}_ms": round(percentile(values, at) * 1e3, 3) for key, values in series.items()
                             for q, at in (("median", 0.5), ("p99", 0.99))} | {
                "e2el_ms": [round(times[-1] * 1e3, 2) for times in streams]}
        alone, among = figures["undisturbed"], figures["among_vanishing"]
        figures["p99_ratio"] = {key: round(among[f"p99_{key}_ms"] / alone[f"p99_{key}_ms"], 3) for key in ("ttft", "e2el", "itl")}
        figures["cancelled"] = left.get('spinfer_requests_ended_total{reason="cancelled"}', 0)
        figures["running_after"] = left["spinfer_requests_running"]
        figures["kv_blocks_used_after"] = left['spinfer_kv_blocks{state="used"}']
        self.say(f"P99 while {gone} vanish, to P99 alone: {figures['p99_ratio']}")
        return figures

    def run(self, parts):
        def done(part, result, _):
            if result:
                name = f"capped_{self.args.cap_gb:g}gb" if part == "capped" else part
                (self.args.out / f"serving_{name}.json").write_text(readable(result))
        return run_parts(self, parts, done)


class Server:
    """`spinfer serve` of one side, with the memory cap."""

    def __init__(self, check, side, setting):
        self.check, args = check, check.args
        arguments = ["serve", *check.weights(side), "--device", args.device, "--port", 0, "--max-num-seqs", setting[0],
                     "--max-num-batched-tokens", setting[1], *check.memory(True), "--json"]
        self.command = " ".join(["spinfer", *map(str, arguments)])
        self.process = subprocess.Popen([args.program, *map(str, arguments)], stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        lines = [self.process.stdout.readline() for _ in range(2)]  # listening, ready
        if not lines[1]:
            raise RuntimeError(f"{self.command}: ended with status {self.process.wait()}")
        self.url = json.loads(lines[0])["url"]
        self.port = int(self.url.rsplit(":", 1)[1])
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        if status != 0:
            raise RuntimeError(f"{self.command}: ended with status {status}")

    def load(self, rate, prompts):
        run = json.loads(self.check.spinfer("bench", "serve", "--url", self.url, "--trace", self.check.trace, "--num-prompts",
                                            prompts, "--request-rate", rate, "--ignore-eos", "--samples", "--json"))
        self.check.say(f"rate {rate}: {run['completed']} answered, {run['failed']} failed in {run['duration_s']:.1f} s, "
                       f"{run['request_throughput']:.2f} requests/s, {run['output_throughput']:.0f} tokens/s, TTFT median "
                       f"{run['median_ttft_ms']:.0f} P99 {run['p99_ttft_ms']:.0f} ms, TPOT median {run['median_tpot_ms']:.1f} ms")
        return run


# ---- clients of the vanish part

def post(body):
    body = json.dumps(body).encode()
    return f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def prompt_of(seed, tokens):
    draw = random.Random(seed)
    return [draw.randrange(3, 800) for _ in range(tokens)]


async def stream(port, seed, tokens):
    """When the events of a streamed answer came, in seconds since it was asked for."""
    begin = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(post({"prompt": prompt_of(seed, 100), "max_tokens": tokens, "stream": True, "ignore_eos": True}))
    times = []
    while b"[DONE]" not in (line := await reader.readline()):
        if line.startswith(b"data:"):
            times.append(time.monotonic() - begin)
        if not line:
            raise RuntimeError("the stream ended without [DONE]")
    writer.close()
    return times


async def steady_clients(port, enough, tokens):
    """The streams of 8 clients that ask again and again until `enough`(rounds asked), out of step with each other."""
    async def client(number):
        streams = []
        await asyncio.sleep(0.05 * number)
        while not enough(len(streams)):
            streams.append(await stream(port, 1000 * number + len(streams), tokens))
        return streams
    return [times for streams in await asyncio.gather(*(client(i) for i in range(8))) for times in streams]


async def vanish_after(port, seed, seconds, streaming):
    """Gone while queued, in prefill or while decoding, by a reset or a clean end."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(post({"prompt": prompt_of(-seed - 1, 100), "max_tokens": 400, "stream": streaming, "ignore_eos": True}))
    await writer.drain()
    await asyncio.sleep(seconds)
    if seed % 3 == 0:
        writer.transport.abort()
    writer.close()


async def disturb(port, vandals, tokens):
    gone = 0
    steady = asyncio.ensure_future(steady_clients(port, lambda rounds: rounds >= 4 and gone >= vandals, tokens))

    async def vandal():
        nonlocal gone
        while gone < vandals:
            number, gone = gone, gone + 1
            await vanish_after(port, number, (0, 0.005, 0.03, 0.2)[number % 4], number // 4 % 2 == 0)

    await asyncio.gather(*(vandal() for _ in range(4)))
    return await steady, gone


async def metrics(port):
    await asyncio.sleep(0.5)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith("spinfer_"))
    return {name: float(value) for name, _, value in lines}


def settings(text):
    return [tuple(map(int, item.split("x"))) for item in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--model", default="llama-2-7b", help="its name, for the result")
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--program", default=str(ROOT / "build" / "spinfer"))
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--cap-gb", type=float, default=18)
    parser.add_argument("--every", type=int, default=40)
    parser.add_argument("--settings", type=settings, default="32x512,32x2048", help="of capped: SEQUENCESxTOKENS,…")
    parser.add_argument("--full-settings", type=settings, default="128x2048", help="of full")
    parser.add_argument("--prompts", type=int, default=480, help="requests of a run of capped or full, all there at once")
    parser.add_argument("--duration", type=float, default=5, help="seconds of a run of capped")
    parser.add_argument("--full-duration", type=float, default=11, help="seconds of a run of full")
    parser.add_argument("--gap-tokens", type=int, default=128)
    parser.add_argument("--shares", type=lambda text: list(map(float, text.split(","))), default="0.5,0.75,1")
    parser.add_argument("--rate-sides", default=",".join(SIDES))
    parser.add_argument("--rate-prompts", type=int, default=24, help="requests of the run at rate inf")
    parser.add_argument("--rate-seconds", type=float, default=4, help="of arrivals in each other run of rates")
    parser.add_argument("--vanish-tokens", type=int, default=96)
    args = parser.parse_args()
    parts = args.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only {','.join(unknown)}: must be some of {','.join(PARTS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    sys.exit(0 if Check(args).run(parts) else 1)


if __name__ == "__main__":
    main()
