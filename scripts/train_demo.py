#!/usr/bin/env python3
"""Trains one demo model (LLaMA or OPT) on public-domain books, prunes it to 50 % and writes Hugging Face directories.

    train_demo.py --arch llama --data TEXTS --out DIR

OUT/dense and OUT/pruned are complete directories (fp16 safetensors, config, tokenizer) that
AutoModelForCausalLM loads; OUT/pruned keeps its zeros as zeros and is what `spinfer pack` takes.
OUT/log.json holds the losses, OUT/samples.txt text from both models, OUT/valid.txt the held-out excerpt.
Needs torch, transformers, tokenizers and sentencepiece; a GPU makes it minutes.
"""

import argparse
import copy
import io
import json
import math
import re
import statistics
import sys
import time
from pathlib import Path

import sentencepiece
import tokenizers
import torch
import torch.nn.functional as F
import transformers

BOOKS = ["war-and-peace.txt", "tinyshakespeare.txt", "botchan.txt", "wizard_of_oz.txt"]
VALID_FRACTION = 0.02
EXCERPT_CHARS = 20_000
CONTEXT = 512  # positions, BOS included
EVAL_TOKENS = 256  # text tokens after BOS in each evaluation window
PIECES = 2048
PROMPTS = ["", "Prince Andrew", "The old man looked at her and said,", "ROMEO:\n", "Alice"]
DROPOUT_AFTER = ("embed_tokens", "o_proj", "down_proj", "out_proj", "fc2")

# Shapes: at most 6 MB packed, all linear sizes multiples of 64 with one 64-row tile per head, so that heads
# split at tile borders. The OPT vocabulary has more rows than pieces and is no multiple of 64, as in Meta's.
LLAMA = dict(vocab_size=PIECES, hidden_size=256, intermediate_size=640, num_hidden_layers=6, num_attention_heads=4,
             num_key_value_heads=2, head_dim=64, max_position_embeddings=CONTEXT, rms_norm_eps=1e-5,
             tie_word_embeddings=True, bos_token_id=1, eos_token_id=2)
OPT = dict(vocab_size=PIECES + 8, hidden_size=256, word_embed_proj_dim=256, ffn_dim=1024, num_hidden_layers=5,
           num_attention_heads=4, max_position_embeddings=CONTEXT, dropout=0.0, activation_function="relu",
           do_layer_norm_before=True, pad_token_id=1, bos_token_id=2, eos_token_id=2)


# ---- text -----------------------------------------------------------------------------------------------------------


def clean(text):
    """Book text with ASCII punctuation, one line per prose paragraph, blank lines between paragraphs."""
    text = text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    text = re.split(r"\*\*\* ?START OF[^\n]*\n", text, maxsplit=1)[-1]
    text = re.split(r"\n(?:End of (?:the )?Project Gutenberg|\*\*\* ?END OF)", text, maxsplit=1)[0]
    text = re.sub(r"^Produced by .*\n", "", text, flags=re.M)
    # Collections made of overlapping passages repeat the overlap at once.
    text = re.sub(r"(.{24,120}?)\1", r"\1", text, flags=re.S)
    text = re.sub(r'^ +(?:"(?=["A-Za-z]))?', "", text, flags=re.M)
    text = text.translate(str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": "--", "…": "...", "\xa0": " "}))
    lines = [line.rstrip() for line in text.split("\n")]
    lengths = sorted(len(line) for line in lines if line)
    if statistics.median(lengths) < 50:  # verse keeps its lines
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    full = 0.75 * lengths[int(0.95 * len(lengths))]  # a shorter line ends a paragraph
    paragraphs, current = [], []
    for line in lines + [""]:
        if line:
            current.append(line)
        if current and len(line) < full:
            paragraphs.append(" ".join(current))
            current = []
    return "\n\n".join(paragraphs)


def load_books(data):
    """Training passages, validation passages (one per book) and the excerpt of the latter, shared out by length."""
    train, valid = [], []
    for name in BOOKS:
        text = clean((data / name).read_text(encoding="utf-8"))
        begin = text.index("\n\n", int(0.55 * len(text))) + 2
        end = text.index("\n\n", begin + int(VALID_FRACTION * len(text)))
        train += [text[: begin - 2], text[end + 2 :]]
        valid.append(text[begin:end])
    share = EXCERPT_CHARS / sum(map(len, valid))
    excerpt = "\n\n".join(text[: text.index("\n\n", int(share * len(text)) - 200)] for text in valid) + "\n"
    return train, valid, excerpt


# ---- tokenizers -----------------------------------------------------------------------------------------------------


def sentencepiece_tokenizer(texts, out):
    """LLaMA-2's settings; newlines and rare characters become bytes. Returns text → ids (no BOS)."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in texts for line in text.split("\n") if line), model_writer=model,
        model_type="bpe", vocab_size=PIECES, byte_fallback=True, character_coverage=0.99995, split_digits=True,
        normalization_rule_name="identity", add_dummy_prefix=True, remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, max_sentence_length=16384, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        minloglevel=2)
    (out / "tokenizer.model").write_bytes(model.getvalue())
    config = dict(tokenizer_class="LlamaTokenizer", add_bos_token=True, add_eos_token=False, bos_token="<s>",
                  eos_token="</s>", unk_token="<unk>", pad_token=None, legacy=True, clean_up_tokenization_spaces=False,
                  model_max_length=CONTEXT)
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).encode


def byte_level_tokenizer(texts, out):
    """GPT-2's byte-level BPE with OPT's special tokens as ids 0 to 3. Returns text → ids (no BOS)."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
        vocab_size=PIECES, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())))
    bpe.model.save(str(out))
    config = dict(tokenizer_class="GPT2Tokenizer", add_bos_token=True, add_prefix_space=False, bos_token="</s>",
                  eos_token="</s>", unk_token="</s>", pad_token="<pad>", errors="replace",
                  clean_up_tokenization_spaces=False, model_max_length=CONTEXT)
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return lambda text: bpe.encode(text, add_special_tokens=False).ids


# ---- model ----------------------------------------------------------------------------------------------------------


def make_model(arch, overrides):
    if arch == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, **overrides}))
    return transformers.OPTForCausalLM(transformers.OPTConfig(**{**OPT, **overrides}))


def add_dropout(model, p):
    """Dropout on the embedding and on what each block adds to the residual stream (HF's LLaMA has none)."""
    for name, module in model.named_modules():
        if name.endswith(DROPOUT_AFTER):
            module.register_forward_hook(lambda module, _, output: F.dropout(output, p, module.training))


def prunable(model):
    """The linear layers of the blocks; embeddings and LM head stay dense."""
    return {name: module for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and not name.endswith("lm_head")}


def magnitude_masks(model, sparsity):
    """Per matrix: 1 for the largest magnitudes, 0 for exactly floor(sparsity · size) others."""
    masks = {}
    for name, module in prunable(model).items():
        order = module.weight.detach().abs().flatten().argsort()
        mask = torch.ones_like(order, dtype=module.weight.dtype)
        mask[order[: int(sparsity * order.numel())]] = 0
        masks[name] = mask.view_as(module.weight)
    return masks


@torch.no_grad()
def apply_masks(model, masks):
    for name, module in prunable(model).items():
        if name in masks:
            module.weight.mul_(masks[name])


@torch.no_grad()
def rounded(model):
    """A float32 copy that holds the fp16 weights which are saved; RoPE's frequencies stay as they are."""
    model = copy.deepcopy(model).eval()
    for parameter in model.parameters():
        parameter.copy_(parameter.half())
    return model


@torch.no_grad()
def evaluate(model, passages, bos):
    """Mean negative log-likelihood (nats per token) over windows of BOS and up to EVAL_TOKENS text tokens."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    windows = [ids[i : i + EVAL_TOKENS] for ids in passages for i in range(0, len(ids), EVAL_TOKENS)]
    for length in sorted({len(window) for window in windows}):
        group = torch.tensor([[bos, *window] for window in windows if len(window) == length], device=device)
        for batch in group.split(32):
            logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
            total += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
            count += batch[:, 1:].numel()
    model.train(was_training)
    return total / count


def report(nll):
    return {"nll": round(nll, 4), "ppl": round(math.exp(nll), 3)}


class Batches:
    """Random windows of BOS and CONTEXT - 1 tokens; every second one begins at a paragraph."""

    def __init__(self, passages, newline, bos, batch, device, seed):
        self.tokens = torch.tensor([token for ids in passages for token in ids], device=device)
        span = torch.arange(CONTEXT - 1, device=device)
        is_newline = self.tokens.eq(newline)
        after_blank = (is_newline[:-2] & is_newline[1:-1] & ~is_newline[2:]).nonzero().flatten() + 2
        self.last = len(self.tokens) - CONTEXT + 1
        self.paragraphs = after_blank[after_blank < self.last]
        self.span, self.batch, self.device, self.bos = span, batch, device, bos
        self.random = torch.Generator(device=device).manual_seed(seed)

    def next(self):
        starts = torch.randint(self.last, (self.batch,), generator=self.random, device=self.device)
        half = self.batch // 2
        if len(self.paragraphs):
            pick = torch.randint(len(self.paragraphs), (half,), generator=self.random, device=self.device)
            starts[:half] = self.paragraphs[pick]
        text = self.tokens[starts[:, None] + self.span]
        return F.pad(text, (1, 0), value=self.bos)


def train(model, batches, valid, bos, *, steps, seconds, peak, masks, eval_every, label):
    """AdamW with warm-up and cosine decay, bounded by steps and by wall time; ends with the best weights seen on
    the validation passages. Returns {"steps", "seconds", "curve": [[step, train loss, validation loss], …]}."""
    device = batches.device
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=peak,
        betas=(0.9, 0.95), fused=device.type == "cuda")
    warmup = max(1, steps // 20)
    begin, step, done = time.time(), 0, False
    running, since, best, curve = torch.zeros((), device=device), 0, (math.inf, None), []
    model.train()
    while not done:
        # Late machines shorten the schedule instead of cutting it.
        progress = max(step / steps, (time.time() - begin) / seconds)
        rate = peak * min(1.0, (step + 1) / warmup) * max(0.01, 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = batches.next()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = model(input_ids=batch, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if masks:
            apply_masks(model, masks)
        running += loss.detach()
        since += 1
        step += 1
        done = step >= steps or time.time() - begin >= seconds
        if done or step % eval_every == 0:
            nll = evaluate(model, valid, bos)
            if nll < best[0]:
                best = (nll, {name: value.detach().clone() for name, value in model.state_dict().items()})
            curve.append([step, round(running.item() / since, 4), round(nll, 4)])
            print(f"{label} step {step} train {curve[-1][1]} valid {curve[-1][2]} lr {rate:.2e} "
                  f"{time.time() - begin:.0f} s", flush=True)
            running.zero_()
            since = 0
    model.load_state_dict(best[1])
    return {"steps": step, "seconds": round(time.time() - begin, 1), "curve": curve}


# ---- output ---------------------------------------------------------------------------------------------------------


def save(model, tokenizer_files, out):
    out.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).half().save_pretrained(out)
    for file in sorted(tokenizer_files.iterdir()):
        (out / file.name).write_bytes(file.read_bytes())


def zero_fraction(directory):
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float16)
    weights = [module.weight for module in prunable(model).values()]
    return sum((w == 0).sum().item() for w in weights) / sum(w.numel() for w in weights)


def write_samples(model, tokenizer, path, label, tokens):
    torch.manual_seed(7)
    device = next(model.parameters()).device
    with open(path, "a", encoding="utf-8") as file:
        for prompt in PROMPTS:
            ids = torch.tensor([tokenizer(prompt)["input_ids"]], device=device)
            text = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens,
                                  do_sample=True, temperature=0.8, top_k=40, pad_token_id=1)
            text = tokenizer.decode(text[0, 1:])
            file.write(f"=== {label}, prompt {prompt!r}\n{text}\n\n")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=["llama", "opt"], required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with " + ", ".join(BOOKS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000, help="dense training")
    parser.add_argument("--tune-steps", type=int, default=1800, help="after pruning, mask frozen")
    parser.add_argument("--minutes", type=float, default=60, help="bound on the wall time of both trainings together")
    parser.add_argument("--batch", type=int, default=32, help=f"windows of {CONTEXT} positions")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--tune-lr", type=float, default=6e-4)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--eval-every", type=int, default=200)
    parser.add_argument("--sample-tokens", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--override", type=json.loads, default={}, help="JSON of config fields, for a quick trial")
    return parser.parse_args()


def main():
    args = parse_arguments()
    begin = time.time()
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer_files = args.out / "tokenizer"
    tokenizer_files.mkdir(parents=True, exist_ok=True)

    train_texts, valid_texts, excerpt = load_books(args.data)
    (args.out / "valid.txt").write_text(excerpt, encoding="utf-8")
    make_tokenizer = sentencepiece_tokenizer if args.arch == "llama" else byte_level_tokenizer
    encode = make_tokenizer(train_texts, tokenizer_files)
    train_ids, valid_ids = [encode(text) for text in train_texts], [encode(text) for text in valid_texts]
    newline = encode("a\nb")[-2]
    model = make_model(args.arch, args.override).to(device)
    bos = model.config.bos_token_id
    parameters = sum(p.numel() for p in model.parameters())
    linear = sum(module.weight.numel() for module in prunable(model).values())
    log = {
        "arch": args.arch, "arguments": {key: str(value) if isinstance(value, Path) else value
                                         for key, value in vars(args).items() if key not in ("data", "out")},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "text": {"books": BOOKS, "train_chars": sum(map(len, train_texts)), "valid_chars": sum(map(len, valid_texts)),
                 "train_tokens": sum(map(len, train_ids)), "valid_tokens": sum(map(len, valid_ids))},
        "parameters": parameters, "linear_parameters": linear,
    }
    print(json.dumps(log, indent=1), flush=True)

    add_dropout(model, args.dropout)
    batches = Batches(train_ids, newline, bos, args.batch, device, args.seed)
    tuned_share = args.tune_steps / (args.steps + args.tune_steps)
    seconds = 60 * args.minutes
    stages = {}

    def finish_stage(name):
        stages[name] = report(evaluate(rounded(model), valid_ids, bos))
        print(name, stages[name], flush=True)

    log["dense_training"] = train(model, batches, valid_ids, bos, steps=args.steps, seconds=seconds * (1 - tuned_share),
                                  peak=args.lr, masks=None, eval_every=args.eval_every, label="dense")
    finish_stage("dense")
    save(model, tokenizer_files, args.out / "dense")
    dense = rounded(model)

    masks = magnitude_masks(model, args.sparsity)
    apply_masks(model, masks)
    finish_stage("pruned")
    log["tuning"] = train(model, batches, valid_ids, bos, steps=args.tune_steps, seconds=seconds * tuned_share,
                          peak=args.tune_lr, masks=masks, eval_every=args.eval_every, label="tuned")
    finish_stage("pruned_tuned")
    save(model, tokenizer_files, args.out / "pruned")

    log["validation"] = stages
    log["zeros_in_linears"] = round(zero_fraction(args.out / "pruned"), 6)
    log["seconds"] = round(time.time() - begin, 1)
    (args.out / "log.json").write_text(json.dumps(log) + "\n")
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.out / "pruned")
    (args.out / "samples.txt").unlink(missing_ok=True)
    write_samples(dense, tokenizer, args.out / "samples.txt", "dense", args.sample_tokens)
    write_samples(rounded(model), tokenizer, args.out / "samples.txt", "pruned", args.sample_tokens)
    print(f"done in {time.time() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
