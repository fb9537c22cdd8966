#!/usr/bin/env python3
"""Everything that needs several GPUs: correctness, collectives, loading, serving, failures, latency.

    scripts/tensor_parallel_check.py -o OUT --config DIR/config.json --trace TRACE.csv [--bin build] [--only PARTS]

--bin     folder of the built programs; one with spinfer, gpu_collective_bench, cuda_ops_tests, engine_tests and
          engine_gpu_tests side by side does too
--config  the model's shape that is served, with random weights; the tokenizer's files lie beside it
--trace   lengths of the requests (Azure LLM inference trace 2023, conversation); every --every-th row is taken
--only    some of tests,all_reduce,faults,serve,checkpoint,load,latency (the default, in this order)

tests       the tests of collectives and of the engine that want two GPUs
all_reduce  8 KB … 64 MB inside graphs, ours and NCCL's; what `spinfer doctor` says of the links
faults      a server whose rank throws or hangs while clients wait, come and vanish; one that gets SIGTERM in mid-generation
serve       a server of each side, sparse and dense, under the trace, while other clients vanish
checkpoint  writes a model of LLaMA-2-7B's shape with 60 % zeros to --work and packs it (needs torch)
load        how fast that is resident on one rank and on all, from the page cache and from storage, and how fast storage is
latency     decode steps of OPT-30B, OPT-66B and LLaMA-2-70B, sparse and dense, and what a step of the last is made of

Each part writes OUT/tp_PART.json (latency: OUT/tp_MODEL.json). A part that fails does not end the others; the exit status is
1 then. Faults are injected by variables that only builds with tests read.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serving_check import metrics, post, prompt_of, readable, run_parts, vanish_after

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("tests", "all_reduce", "faults", "serve", "checkpoint", "load", "latency")
SIDES = ("sparse", "dense")
TESTS = (("cuda_ops_tests", "CudaCollective*:CudaPeerGroup*"), ("engine_gpu_tests", "*TwoGpus*"), ("engine_tests", "*_tp2_cuda"))


def drop_from_cache(paths):
    """Their pages, so that the next read is from storage."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_gbps(paths, threads=16, piece=8 << 20):
    """Of a plain loop that reads the files in order, several pieces at a time."""
    def read(job):
        path, offset = job
        with open(path, "rb", buffering=0) as file:
            return len(os.pread(file.fileno(), piece, offset))
    jobs = [(path, offset) for path in paths for offset in range(0, path.stat().st_size, piece)]
    begin = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(read, jobs))
    return total / (time.monotonic() - begin) * 1e-9


class Server:
    """`spinfer serve` on all ranks."""

    def __init__(self, check, config, sparsity, *more, env=None):
        arguments = ["serve", "--config", config, "--sparsity", sparsity, "--tp", check.args.ranks, "--device",
                     check.args.device, "--port", 0, "--json", *more]
        self.command = " ".join(["spinfer", *map(str, arguments)])
        self.errors, self.failed_at = [], None
        begin = time.monotonic()
        self.process = subprocess.Popen([check.program("spinfer"), *map(str, arguments)], stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})
        threading.Thread(target=self.listen, daemon=True).start()
        lines = [self.process.stdout.readline() for _ in range(2)]  # listening, ready
        if not lines[1]:
            raise RuntimeError(f"{self.command}: ended with {self.process.wait()}: {''.join(self.errors)}")
        self.ready_seconds = time.monotonic() - begin
        self.url = json.loads(lines[0])["url"]
        self.port = int(self.url.rsplit(":", 1)[1])

    def listen(self):
        for line in self.process.stderr:
            if "the engine has failed" in line and not self.failed_at:
                self.failed_at = time.monotonic()
            self.errors.append(line)

    def end(self, by=None, limit=60):
        """(exit status, when it ended)"""
        if by:
            self.process.send_signal(by)
        try:
            status = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return status, time.monotonic()


class Answers:
    """Clients that stream one answer each, while others come and vanish, until the clients have theirs or `over` is set."""

    def __init__(self, port, clients, tokens=0, pause=0):
        self.port, self.tokens, self.pause = port, tokens, pause
        self.last_token, self.first_error = 0.0, None
        self.outcomes = []
        self.over = False
        self.thread = threading.Thread(target=lambda: asyncio.run(self.everyone(clients)))
        self.thread.start()

    async def client(self, seed):
        text = b""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(post({"prompt": prompt_of(seed, 100), "max_tokens": self.tokens, "stream": True, "ignore_eos": True}))
            while data := await reader.read(65536):
                text += data
                if b'"error"' in text or b"[DONE]" in text:
                    break
                self.last_token = time.monotonic()
            writer.close()
        except OSError as error:
            text += repr(error).encode()
        found = re.search(rb'"message":\s*"([^"]*)"', text)
        if b"[DONE]" not in text or found:
            self.first_error = self.first_error or time.monotonic()
        self.outcomes.append(found[1].decode() if found else "whole" if b"[DONE]" in text else "cut off")

    async def vandal(self):
        seed = 0
        while not self.over:
            seed += 1
            try:
                await vanish_after(self.port, seed, (0, 0.005, 0.03, 0.1)[seed % 4], seed // 4 % 2 == 0)
                await asyncio.sleep(self.pause)
            except OSError:
                await asyncio.sleep(0.02)

    async def everyone(self, clients):
        vandals = [asyncio.ensure_future(self.vandal()) for _ in range(2)]
        await asyncio.gather(*(self.client(i) for i in range(clients)))
        self.over = self.over or clients > 0
        await asyncio.gather(*vandals)

    def counts(self):
        self.thread.join()
        return {outcome: self.outcomes.count(outcome) for outcome in sorted(set(self.outcomes))}


class Check:
    def __init__(self, args):
        self.args, self.begin = args, time.monotonic()

    def program(self, name):
        folders = ("", "kernels", "tests/kernels", "tests/engine")
        return str(next((path for folder in folders if (path := self.args.bin / folder / name).exists()), self.args.bin / name))

    def say(self, text):
        print(f"{time.monotonic() - self.begin:6.1f} s  {text}", flush=True)

    def environment(self):
        found = {"commit": os.environ.get("SPINFER_COMMIT", "unknown"), "ranks": self.args.ranks}
        if self.args.device == "cuda":
            out = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
                                 capture_output=True, text=True).stdout
            found["nvidia_smi"] = out.splitlines()
        return found

    def spinfer(self, *arguments, timeout=120):
        command = [self.program("spinfer"), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: status {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def gpu_bytes(self):
        if self.args.device != "cuda":
            return []
        out = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], capture_output=True,
                             text=True).stdout
        return [int(line) << 20 for line in out.splitlines()]

    # ---- parts

    def tests(self):
        found = {}
        for name, pattern in TESTS:
            done = subprocess.run([self.program(name), f"--gtest_filter={pattern}"], capture_output=True, text=True, timeout=120)
            lines = done.stdout.splitlines()
            found[name] = {"filter": pattern, "status": done.returncode,
                           "passed": sum(line.startswith("[       OK") for line in lines),
                           "skipped": len({line for line in lines if line.startswith("[  SKIPPED ]") and "(" in line}),
                           "said": [line for line in lines if " nat over " in line]}
            self.say(f"{name}: {found[name]['passed']} passed, {found[name]['skipped']} skipped, status {done.returncode}")
            if done.returncode:
                self.say("\n".join(line for line in lines if not line.startswith("[ RUN"))[-6000:] + done.stderr[-1500:])
        if any(part["status"] or not part["passed"] for part in found.values()):
            raise RuntimeError("tests failed")
        return found

    def all_reduce(self):
        out = subprocess.run([self.program("gpu_collective_bench")], capture_output=True, text=True, timeout=60)
        if out.returncode:
            raise RuntimeError(out.stderr)
        self.say(out.stderr)
        doctor = json.loads(self.spinfer("doctor", "--json"))
        return {**json.loads(out.stdout), "doctor": next(found for found in doctor["backends"] if found["name"] == "cuda")}

    def faults(self):
        kinds = {"throws": {"SPINFER_FAULT_RANK": "1"}, "hangs": {"SPINFER_FAULT_RANK": "0", "SPINFER_FAULT_HANG": "1"}, "sigterm": {}}
        found, wrong = {"watchdog_s": self.args.watchdog}, []
        for kind, env in kinds.items():
            before = self.gpu_bytes()
            if env:
                env = {**env, "SPINFER_FAULT_STEP": str(self.args.fault_step)}
            server = Server(self, self.args.fault_config or self.args.config, self.args.sparsity, "--max-num-seqs", 8,
                            "--max-num-batched-tokens", 256, "--max-model-len", self.args.fault_tokens + 112, "--watchdog", self.args.watchdog,
                            "--drain-timeout", 0.5, env=env)
            self.say(f"{kind}: ready after {server.ready_seconds:.1f} s")
            answers = Answers(server.port, 24, self.args.fault_tokens)
            if kind == "sigterm":
                time.sleep(self.args.sigterm_after)
                sent = time.monotonic()
                status, ended = server.end(signal.SIGTERM)
            else:
                status, ended = server.end()
            found[kind] = {"command": server.command, "env": env, "ready_s": server.ready_seconds, "status": status,
                           "answers": answers.counts(), "gpu_bytes_before": before, "gpu_bytes_after": self.gpu_bytes()}
            if kind == "sigterm":
                found[kind]["seconds_to_end"] = ended - sent
                passed = status == 0 and ended - sent < 10
            else:
                found[kind] |= {"seconds_last_token_to_failure": server.failed_at - answers.last_token,
                                "seconds_failure_to_end": ended - server.failed_at, "stderr": "".join(server.errors)[-800:]}
                passed = status == 1 and ended - server.failed_at < 10 and "whole" not in found[kind]["answers"]
            wrong += [] if passed else [kind]
            self.say(f"{kind}: {json.dumps(found[kind])}")
        if wrong:
            self.say(f"faults: {', '.join(wrong)} ended otherwise than they should")
        return {"as_they_should": not wrong, **found}

    def serve(self):
        found = {"model": self.args.model, "sparsity": self.args.sparsity, "trace": self.args.trace.name, "trace_every": self.args.every}
        trace = self.args.out / "trace.csv"
        rows = self.args.trace.read_text().splitlines()
        trace.write_text("\n".join([rows[0], *rows[1::self.args.every]]) + "\n")
        for side in SIDES:
            server = Server(self, self.args.config, self.args.sparsity if side == "sparse" else 0, "--max-num-seqs",
                            self.args.seqs, "--max-num-batched-tokens", 2048)
            self.say(f"{side} ready after {server.ready_seconds:.1f} s")
            vandals = Answers(server.port, clients=0, pause=0.2)
            runs = [self.load_server(server, trace, "inf", self.args.prompts)]
            vandals.over = True
            vandals.thread.join()
            for share in self.args.shares:
                rate = round(runs[0]["request_throughput"] * share, 3)
                runs.append(self.load_server(server, trace, rate, max(8, int(rate * self.args.rate_seconds))))
            left = asyncio.run(metrics(server.port))
            sizes = {name: value for name, value in left.items() if name.startswith("spinfer_rank_")}
            status, _ = server.end(signal.SIGTERM)
            found[side] = {"command": server.command, "ready_s": server.ready_seconds, "runs": runs, "exit_status": status,
                           "cancelled": left['spinfer_requests_ended_total{reason="cancelled"}'],
                           "kv_blocks_used_after": left['spinfer_kv_blocks{state="used"}'], "ranks": sizes}
            self.say(f"{side}: {found[side]['cancelled']:.0f} cancelled, {found[side]['kv_blocks_used_after']:.0f} blocks in use "
                     f"after, status {status}, {sizes}")
        trace.unlink()
        found["speedup"] = found["sparse"]["runs"][0]["output_throughput"] / found["dense"]["runs"][0]["output_throughput"]
        return found

    def load_server(self, server, trace, rate, prompts):
        run = json.loads(self.spinfer("bench", "serve", "--url", server.url, "--trace", trace, "--num-prompts", prompts,
                                      "--request-rate", rate, "--ignore-eos", "--json"))
        self.say(f"rate {rate}: {run['completed']} answered, {run['failed']} failed in {run['duration_s']:.1f} s, "
                 f"{run['output_throughput']:.0f} tokens/s, TTFT median {run['median_ttft_ms']:.0f} P99 {run['p99_ttft_ms']:.0f} "
                 f"ms, TPOT median {run['median_tpot_ms']:.1f} ms")
        return run | {"output_throughput_per_gpu": run["output_throughput"] / self.args.ranks}

    def checkpoint(self):
        from pruning_timing import write_model
        config = json.loads((ROOT / "configs" / "models" / "llama-2-7b.json").read_text())
        config["num_hidden_layers"] = self.args.load_layers
        begin = time.monotonic()
        dense = self.args.dense_work / "dense"
        for directory in (dense, self.args.work / "packed"):
            shutil.rmtree(directory, ignore_errors=True)
        write_model(dense, config, self.args.sparsity)
        self.say(f"written after {time.monotonic() - begin:.1f} s")
        self.spinfer("pack", "-m", dense, "-o", self.args.work / "packed")
        shutil.rmtree(dense)
        self.say(f"packed after {time.monotonic() - begin:.1f} s")

    def load(self):
        packed = self.args.work / "packed"
        files = sorted(packed.glob("*.safetensors"))
        found = {"what": f"LLaMA-2-7B's shape, {self.args.load_layers} layers, random weights, {self.args.sparsity:.0%} zeros, packed",
                 "file_bytes": sum(path.stat().st_size for path in files), "runs": []}
        for ranks in sorted({1, self.args.ranks}):
            for cold in (True, False):
                if cold:
                    drop_from_cache(files)
                arguments = ["bench", "latency", "-m", packed, "--tp", ranks, "--batch-size", 1, "--output-len", 3, "--warmup", 0,
                             "--device", self.args.device, "--json"]
                run = json.loads(self.spinfer(*arguments))["sparse"]
                seconds = run["load_seconds"]
                each = [rank["weights_bytes"] / seconds * 1e-9 for rank in run["ranks"]]
                found["runs"].append({"ranks": ranks, "from": "storage" if cold else "page cache", "load_seconds": seconds,
                                      "file_gbps": found["file_bytes"] / seconds * 1e-9, "rank_gbps": each})
                self.say(json.dumps(found["runs"][-1]))
        drop_from_cache(files)
        found["storage_read_gbps"] = read_gbps(files)
        found["page_cache_read_gbps"] = read_gbps(files)
        self.say(f"plain reads: storage {found['storage_read_gbps']:.2f}, page cache {found['page_cache_read_gbps']:.2f} GB/s")
        shutil.rmtree(packed)
        return found

    def latency(self):
        ranks, base = self.args.ranks, ["--input-len", 64, "--device", self.args.device, "--json"]
        batches = ["--batch-size", "8,16,32", "--output-len", 128, "--baseline", "dense"]
        split = ["--batch-size", 16, "--output-len", 32, "--breakdown"]
        plan = {"opt-30b": [(ranks, batches), (1, batches)], "opt-66b": [(ranks, batches)],
                "llama-2-70b": [(ranks, batches), (ranks, split)]}
        for model in self.args.models:
            runs = []
            for tp, flags in plan[model]:
                arguments = ["bench", "latency", "--config", ROOT / "configs" / "models" / f"{model}.json", "--sparsity", self.args.sparsity,
                             "--tp", tp, *flags, *base]
                document = json.loads(self.spinfer(*arguments))
                rows = document.get("rows", [document])
                for row in rows:
                    for side in set(SIDES) & set(row):
                        row[side]["step_ms"] = [round(ms, 4) for ms in row[side]["step_ms"]]
                    times = {side: round(row[side]["tpot_ms_median"], 2) for side in SIDES if side in row}
                    self.say(f"{model} tp {tp} batch {row['batch_size']}: {times} ms {row['sparse'].get('breakdown_ms', '')}")
                runs.append({"tp": tp, "command": " ".join(["spinfer", *map(str, arguments)]).replace(f"{ROOT}/", ""), "rows": rows})
            result = {"model": model, **self.environment(), "runs": runs}
            (self.args.out / f"tp_{model}.json").write_text(readable(result))

    def run(self, parts):
        def done(part, result, seconds):
            if result:
                (self.args.out / f"tp_{part}.json").write_text(readable(result).replace(f"{self.args.out}/", ""))
            self.say(f"{part}: {seconds:.1f} s")
        return run_parts(self, parts, done)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--bin", type=Path, default=ROOT / "build")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--model", default="llama-2-70b", help="name of --config's, for the result")
    parser.add_argument("--fault-config", type=Path, help="of faults, instead of --config")
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--every", type=int, default=40)
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--seqs", type=int, default=32, help="of serve: requests at once")
    parser.add_argument("--prompts", type=int, default=48, help="of serve: requests of the first run")
    parser.add_argument("--shares", type=lambda text: [float(share) for share in text.split(",") if share], default="0.5",
                        help="of serve: further runs, at these shares of the first one's rate")
    parser.add_argument("--rate-seconds", type=float, default=10, help="of arrivals in each of these")
    parser.add_argument("--watchdog", type=float, default=3, help="of faults: seconds")
    parser.add_argument("--fault-step", type=int, default=150, help="of faults")
    parser.add_argument("--fault-tokens", type=int, default=900, help="of faults: length of each answer")
    parser.add_argument("--sigterm-after", type=float, default=1, help="of faults: seconds")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "tensor_parallel_check", help="of load: folder on the storage")
    parser.add_argument("--dense-work", type=Path, default=Path("/dev/shm/tensor_parallel_check"), help="of checkpoint")
    parser.add_argument("--load-layers", type=int, default=32)
    parser.add_argument("--models", type=lambda text: text.split(","), default="opt-30b,opt-66b,llama-2-70b", help="of latency")
    args = parser.parse_args()
    parts = args.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only {','.join(unknown)}: must be some of {','.join(PARTS)}")
    if ("serve" in parts and not args.trace) or ({"serve", "faults"} & set(parts) and not args.config):
        parser.error("serve needs --config and --trace, faults --config")
    for folder in (args.out, args.work, args.dense_work):
        folder.mkdir(parents=True, exist_ok=True)
    sys.exit(0 if Check(args).run(parts) else 1)


if __name__ == "__main__":
    main()
