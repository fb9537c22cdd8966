#!/usr/bin/env python3
"""Does spinfer compute what Hugging Face transformers computes, at real sizes?

Makes models of real shapes with random weights (a share of each linear's set to zero), saves them as safetensors, scores
random tokens with transformers in fp32 and fp16 and with `spinfer score`, and writes the mean and largest difference of
the log-probabilities as JSON. Exit status 1 if a mean difference reaches 0.01. Needs a GPU, torch and transformers.

  scripts/hf_agreement.py --spinfer build/spinfer --out scripts/results/h200_hf_agreement.json
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

SHAPES = {
    "opt-1.3b": lambda: OPTForCausalLM(OPTConfig(
        vocab_size=50272, hidden_size=2048, ffn_dim=8192, num_hidden_layers=24, num_attention_heads=32,
        max_position_embeddings=2048, word_embed_proj_dim=2048, do_layer_norm_before=True)),
    "llama-2-7b": lambda: LlamaForCausalLM(LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, max_position_embeddings=4096, rms_norm_eps=1e-5, tie_word_embeddings=False)),
}
LIMIT = 0.01
SHORT, LONG = [2, 17, 40], [64, 200, 512]  # together 59 tokens, which the decode kernel multiplies, and 776: prefill


def make_model(name, sparsity, directory):
    """The model on the GPU in fp16, as it was saved."""
    torch.manual_seed(1)
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda"):
        model = SHAPES[name]()
    torch.set_default_dtype(torch.float32)
    for module_name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in module_name:
            module.weight.data.mul_(torch.rand_like(module.weight, dtype=torch.float32) >= sparsity)
    model.eval().save_pretrained(directory, max_shard_size="4GB")
    return model


@torch.no_grad()
def logprobs(model, sequences):
    rows = []
    for ids in sequences:
        logits = model(torch.tensor([ids], device="cuda")).logits[0].float()
        scores = torch.log_softmax(logits[:-1], dim=-1)
        rows.append(scores[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].cpu())
    return torch.cat(rows)


def spinfer_logprobs(program, directory, sequences):
    path = os.path.join(directory, "tokens.txt")
    with open(path, "w") as f:
        f.writelines(",".join(map(str, ids)) + "\n" for ids in sequences)
    start = time.time()
    out = subprocess.run([program, "score", "-m", directory, "--tokens-file", path, "--device", "cuda", "--json"],
                         check=True, capture_output=True, text=True).stdout
    rows = [torch.tensor(s["token_logprobs"]) for s in json.loads(out)["sequences"]]
    return torch.cat(rows), time.time() - start


def difference(a, b):
    return {"mean": (a - b).abs().mean().item(), "max": (a - b).abs().max().item()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spinfer", default="build/spinfer")
    parser.add_argument("--models", default=",".join(SHAPES))
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--directory", default="/dev/shm/spinfer_hf", help="where models are written; emptied")
    parser.add_argument("--keep", action="store_true", help="leave the models there")
    parser.add_argument("--out")
    args = parser.parse_args()

    results = {"commit": os.environ.get("SPINFER_COMMIT", "unknown"), "gpu": torch.cuda.get_device_name(), "sparsity": args.sparsity, "limit": LIMIT, "models": {}}
    for name in args.models.split(","):
        directory = os.path.join(args.directory, name)
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory)
        model = make_model(name, args.sparsity, directory)
        generator = torch.Generator().manual_seed(2)
        sequences = [torch.randint(10, model.config.vocab_size, (n,), generator=generator).tolist()
                     for n in SHORT + LONG]
        half = logprobs(model, sequences)
        reference = logprobs(model.float(), sequences)
        del model
        torch.cuda.empty_cache()
        short, seconds = spinfer_logprobs(args.spinfer, directory, sequences[:len(SHORT)])
        long, _ = spinfer_logprobs(args.spinfer, directory, sequences[len(SHORT):])
        border = len(short)
        results["models"][name] = {
            "tokens": len(reference), "mean_logprob": reference.mean().item(),
            "spinfer_short": difference(short, reference[:border]), "spinfer_long": difference(long, reference[border:]),
            "transformers_fp16": difference(half, reference), "spinfer_seconds_with_loading": seconds}
        print(name, json.dumps(results["models"][name]), flush=True)
        if not args.keep:
            shutil.rmtree(directory)
    if args.out:
        with open(args.out, "w") as f:
            json.dump(results, f, indent=1)
    worst = max(m[c]["mean"] for m in results["models"].values() for c in ("spinfer_short", "spinfer_long"))
    return 0 if worst < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
