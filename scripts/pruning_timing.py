#!/usr/bin/env python3
"""How long `spinfer prune` takes on a model of LLaMA-2-7B's shape, per layer and as a whole.

    scripts/pruning_timing.py -o RESULT.json [--program build/spinfer] [--methods wanda sparsegpt] [--layers 1 3]

Random fp16 weights and random calibration tokens (time does not depend on them), 128 samples of 2048 tokens. All layers of
the model are alike, so models of few layers are pruned and the time of one layer is the difference between them; the time
of all 32 is that of the smallest model plus that many more layers, and is marked as extrapolated unless 32 were run.
Needs torch, and room for the checkpoints in --work.
"""

import argparse
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def write_model(directory, config, sparsity=0):
    """A Hugging Face directory of random fp16 weights, of the linears' this share zero."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    h, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    shapes = {"model.embed_tokens.weight": (vocab, h), "model.norm.weight": (h,), "lm_head.weight": (vocab, h)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for name in "qkvo":
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (h, h)
        for name, shape in (("gate", (ffn, h)), ("up", (ffn, h)), ("down", (h, ffn))):
            shapes[f"{layer}mlp.{name}_proj.weight"] = shape
        for name in ("input", "post_attention"):
            shapes[f"{layer}{name}_layernorm.weight"] = (h,)
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with open(directory / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            if len(shape) == 1:
                tensor = torch.ones(shape, dtype=torch.float16)
            else:
                tensor = (torch.randn(shape, device=device) * 0.02).half()
                if sparsity and "layers" in name:
                    tensor *= torch.rand(shape, device=device) >= sparsity
                tensor = tensor.cpu()
            file.write(tensor.numpy().tobytes())


def write_tokens(path, count, vocab):
    draw = random.Random(0)
    path.write_text(" ".join(str(draw.randrange(3, vocab)) for _ in range(count)))


def gpu():
    if not torch.cuda.is_available():
        return {"device": "cpu"}
    driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True,
                            text=True).stdout.split("\n")[0]
    return {"device": torch.cuda.get_device_name(), "driver": driver, "cuda": torch.version.cuda}


def timed(args, method, model, tokens, work):
    command = [args.program, "prune", "-m", str(model), "-o", str(work / "out"), "--method", method, "--sparsity",
               str(args.sparsity), "--calibration-tokens", str(tokens), "--calibration-samples", str(args.samples),
               "--calibration-length", str(args.length), "--device", args.device, "--json"]
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=args.timeout)
    seconds = time.monotonic() - begin
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
    shutil.rmtree(work / "out")
    return seconds, " ".join(["spinfer", *command[1:]]).replace(str(work), "WORK"), json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--program", default=str(ROOT / "build" / "spinfer"))
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "models" / "llama-2-7b.json")
    parser.add_argument("--methods", nargs="+", default=["wanda", "sparsegpt"])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--timeout", type=float, default=600, help="seconds of one run")
    parser.add_argument("--work", type=Path, default=None, help="where the checkpoints go; a folder in memory is best")
    args = parser.parse_args()
    config = json.loads(args.config.read_text())
    all_layers, layers = config["num_hidden_layers"], sorted(args.layers)
    result = {"what": "wall time of `spinfer prune`, reading and writing included", "model": args.config.stem,
              "samples": args.samples, "length": args.length, "sparsity": args.sparsity, **gpu(), "cpus": os.cpu_count(),
              "commit": os.environ.get("SPINFER_COMMIT", "unknown"), "layers_of_the_model": all_layers, "runs": [],
              "methods": {}}
    with tempfile.TemporaryDirectory(prefix="pruning-timing-", dir=args.work) as folder:
        work = Path(folder)
        write_tokens(work / "tokens.txt", args.samples * args.length, config["vocab_size"])
        for count in layers:
            write_model(work / f"model{count}", {**config, "num_hidden_layers": count})
        for method in args.methods:
            seconds = {}
            for count in layers:
                seconds[count], command, report = timed(args, method, work / f"model{count}", work / "tokens.txt", work)
                result["runs"].append({"method": method, "layers": count, "seconds": round(seconds[count], 3),
                                       "zeros": report["sparsity"], "command": command})
                print(f"{method}: {count} layers in {seconds[count]:.2f} s", flush=True)
            if len(layers) > 1:
                per_layer = (seconds[layers[-1]] - seconds[layers[0]]) / (layers[-1] - layers[0])
                whole = seconds[layers[-1]] + (all_layers - layers[-1]) * per_layer
                result["methods"][method] = {"seconds_per_layer": round(per_layer, 3), "seconds_all_layers": round(whole, 1),
                                             "extrapolated": layers[-1] != all_layers}
                print(f"{method}: {per_layer:.2f} s a layer, {whole:.0f} s for {all_layers}", flush=True)
            elif layers == [all_layers]:
                result["methods"][method] = {"seconds_all_layers": round(seconds[all_layers], 1), "extrapolated": False}
            args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
