#!/usr/bin/env python3
"""Writes reference results of a Hugging Face model directory, computed in float32 from its fp16 weights.

    make_goldens.py MODEL_DIR -o golden.json [--text FILE]

cases       ids (BOS first), natural log-probability of each next token, the last position's top 8, greedy tokens and
            the gap between the two best log-probabilities at each of those steps
tokenizer   texts and their ids, BOS included: by SentencePiece where there is a tokenizer.model (as LLaMA-2's own files
            give them; transformers 5 leaves out the dummy prefix before a leading space), else by AutoTokenizer
perplexity  of --text in windows of BOS and --ctx text tokens, every text token scored
The model must be dense or dense with zeros (a packed directory holds no weights transformers knows).
"""

import argparse
import json
import math
import sys
from pathlib import Path

import sentencepiece
import torch
import transformers

TOP = 8
PROMPTS = [
    "",
    "Prince Andrew",
    "ROMEO:\n",
    "The old man looked at her and said,",
    '"What is the matter?" asked Pierre, turning to the countess. "I have been',
]
LONG_PROMPT_TOKENS = 200
TOKENIZER_TEXTS = [
    "",
    " ",
    "Hello world",
    " Hello world",
    "  two  spaces   and three ",
    "Natasha's eyes didn't leave him; they'd seen 1812 and 3.14, we'll say.",
    "line one\nline two\n\nparagraph\n",
    "\n",
    "\ttab\tand\r\ncarriage return",
    "ROMEO:\nWhat, ho! -- who's there?",
    "UPPER lower MiXeD 0123456789",
    "café à la crème, naïve Ünder",
    "Привет, мир! こんにちは世界",
    "emoji 🙂👩‍👩‍👧 end",
    "a" * 40,
    "$%^&*()_+-=[]{}|;':\",./<>?`~\\",
]


def load_encoder(directory):
    """Returns text → ids, BOS first."""
    sentencepiece_model = directory / "tokenizer.model"
    if sentencepiece_model.exists():
        processor = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
        return lambda text: processor.encode(text, add_bos=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    return lambda text: tokenizer(text, verbose=False)["input_ids"]


def log_probabilities(model, ids):
    """ids: [n] → [n, vocabulary] natural log-probabilities of the next token."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return torch.log_softmax(logits.double(), dim=-1)


def make_case(model, ids, greedy_tokens):
    logprobs = log_probabilities(model, ids)
    top = logprobs[-1].topk(TOP)
    case = {
        "ids": ids,
        "token_logprobs": [round(logprobs[i, ids[i + 1]].item(), 6) for i in range(len(ids) - 1)],
        "last_top8_ids": top.indices.tolist(),
        "last_top8_logprobs": [round(value, 6) for value in top.values.tolist()],
        "greedy": [],
        "greedy_gap": [],
    }
    sequence = list(ids)
    for _ in range(greedy_tokens):
        best = logprobs[-1].topk(2)
        case["greedy"].append(best.indices[0].item())
        case["greedy_gap"].append(round((best.values[0] - best.values[1]).item(), 5))
        sequence.append(case["greedy"][-1])
        logprobs = log_probabilities(model, sequence)
    return case


def perplexity(model, ids, bos, ctx, name):
    nll, squares = 0.0, 0.0
    for begin in range(0, len(ids), ctx):
        window = [bos, *ids[begin : begin + ctx]]
        logprobs = log_probabilities(model, window)[:-1]
        losses = -logprobs.gather(1, torch.tensor(window[1:])[:, None])
        nll += losses.sum().item()
        squares += (losses**2).sum().item()
    mean = nll / len(ids)
    error = math.sqrt((squares / len(ids) - mean**2) / (len(ids) - 1))
    return {"text": name, "ctx": ctx, "tokens": len(ids), "mean_nll": round(mean, 6), "ppl": round(math.exp(mean), 5),
            "ppl_error": round(math.exp(mean) * error, 5)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--text", type=Path, default=Path(__file__).parent.parent / "tests/data/demo_valid.txt")
    parser.add_argument("--ctx", type=int, default=256)
    parser.add_argument("--greedy", type=int, default=24)
    args = parser.parse_args()

    encode = load_encoder(args.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    bos = model.config.bos_token_id
    text = args.text.read_text(encoding="utf-8")

    if encode("") != [bos]:
        sys.exit(f"{args.model}: the tokenizer gives an empty text ids {encode('')}, not BOS {bos}")

    text_ids = encode(text)[1:]
    prompts = [encode(prompt) for prompt in PROMPTS] + [[bos, *text_ids[: LONG_PROMPT_TOKENS - 1]]]
    golden = {
        "note": "float32 reference by HF transformers " + transformers.__version__
                + " on the fp16-rounded weights of this model; natural-log probabilities",
        "cases": [make_case(model, ids, args.greedy) for ids in prompts],
        "tokenizer": [{"text": string, "ids": encode(string)} for string in TOKENIZER_TEXTS],
        "perplexity": perplexity(model, text_ids, bos, args.ctx, args.text.name),
    }
    args.output.write_text(json.dumps(golden) + "\n")
    print(f"{args.output}: {len(golden['cases'])} cases, perplexity {golden['perplexity']['ppl']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
