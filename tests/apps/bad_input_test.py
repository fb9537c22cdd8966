"""Every bad flag, file and request: one clear line on stderr, exit status 2 (usage) or 1 (failure), never a signal."""

import json
import os
import shutil
import struct
import subprocess

import program
from program import LLAMA, OPT, ROOT, command

CONFIG = ROOT / "configs" / "models" / "opt-125m.json"
USAGE, FAILURE = 2, 1
LLAMA3_SCALING = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                  "original_max_position_embeddings": 64}

BAD_FLAGS = [  # arguments, what the line must name
    ([], ["command", "generate"]),
    (["foo"], ["foo", "generate", "bench"]),
    (["Generate"], ["Generate"]),
    (["--frobnicate"], ["--frobnicate"]),
    (["bench"], ["kernel", "latency"]),
    (["bench", "foo"], ["foo", "kernel", "latency"]),
    (["bench", "kernel", "--tp", 2], ["--tp 2", "bench kernel", "one rank"]),
    (["pack", "-m", LLAMA, "-o", "unused", "--enforce-eager"], ["--enforce-eager"]),
    (["tokenize", "-m", LLAMA, "--watchdog", 3], ["--watchdog 3"]),
    (["tokenize", "-m", LLAMA, "-tp", 2], ["--tp 2", "tokenize", "one rank"]),
    (["detokenize", "-m", LLAMA, "-tp", 2], ["--tp 2", "detokenize", "one rank"]),
    (["pack", "-m", LLAMA, "-o", "unused", "-tp", 2], ["--tp 2", "pack", "one rank"]),
    (["prune", "-m", LLAMA, "-o", "unused", "-tp", 2], ["--tp 2", "prune", "one rank"]),
    (["generate"], ["--model"]),
    (["generate", "-m", "", "-p", "a"], ["--model", "empty"]),
    (["generate", "-m", LLAMA], ["-p", "-f", "--prompts"]),
    (["generate", "-m", LLAMA, "-p", "a", "-f", "b"], ["-p", "-f"]),
    (["generate", "-m", LLAMA, "-p", "a", "--wrong"], ["--wrong"]),
    (["generate", "-m", LLAMA, "-p", "a", "stray"], ["stray"]),
    (["generate", "-m", LLAMA, "-p", "a", "b", "--c", "d"], ["b --c d"]),
    (["bench", "kernel", "b", "a"], ["b a", "spinfer bench kernel --help"]),
    (["generate", "-m", LLAMA, "-p", "a", "-n"], ["-n"]),
    (["generate", "-m", LLAMA, "-p", "a", "-n", 0], ["-n", "0", "1"]),
    (["generate", "-m", LLAMA, "-p", "a", "-n", -5], ["-n", "-5"]),
    (["generate", "-m", LLAMA, "-p", "a", "-n", "12abc"], ["-n", "12abc"]),
    (["generate", "-m", LLAMA, "-p", "a", "-n", "1.5"], ["-n", "1.5"]),
    (["generate", "-m", LLAMA, "-p", "a", "-n", "99999999999999999999"], ["-n"]),
    (["generate", "-m", LLAMA, "-p", "a", "-n", ""], ["-n"]),
    (["generate", "-m", LLAMA, "-p", "a", "-n", 3, "-n", 4], ["-n"]),
    (["generate", "-m", LLAMA, "-p", "a", "--temp", "nan"], ["--temp", "nan", "0..100"]),
    (["generate", "-m", LLAMA, "-p", "a", "--temp", "inf"], ["--temp"]),
    (["generate", "-m", LLAMA, "-p", "a", "--temp", -0.1], ["--temp"]),
    (["generate", "-m", LLAMA, "-p", "a", "--temp", 100.5], ["--temp", "100.5"]),
    (["generate", "-m", LLAMA, "-p", "a", "--top-p", 0], ["--top-p", "(0, 1]"]),
    (["generate", "-m", LLAMA, "-p", "a", "--top-p", "1e-320"], ["--top-p", "1e-320", "(0, 1]"]),
    (["generate", "-m", LLAMA, "-p", "a", "--top-p", 1.01], ["--top-p"]),
    (["generate", "-m", LLAMA, "-p", "a", "--min-p", -1], ["--min-p"]),
    (["generate", "-m", LLAMA, "-p", "a", "--min-p", 2], ["--min-p"]),
    (["generate", "-m", LLAMA, "-p", "a", "--top-k", -1], ["--top-k"]),
    (["generate", "-m", LLAMA, "-p", "a", "--top-k", "many"], ["--top-k", "many"]),
    (["generate", "-m", LLAMA, "-p", "a", "--repeat-penalty", 0], ["--repeat-penalty"]),
    (["generate", "-m", LLAMA, "-p", "a", "--repeat-penalty", "1e-30"], ["--repeat-penalty", "1e-30", "[0.01, 1000]"]),
    (["generate", "-m", LLAMA, "-p", "a", "--seed", -1], ["--seed"]),
    (["generate", "-m", LLAMA, "-p", "a", "--seed", "0x10"], ["--seed"]),
    (["generate", "-m", LLAMA, "-p", "a", "--stop", ""], ["--stop"]),
    (["generate", "-m", LLAMA, "-p", "a", "--stop", os.fsdecode(b"\x80")], ["--stop", "UTF-8"]),
    (["generate", "-m", LLAMA, "-p", "a", *["--stop", "x"] * 17], ["--stop", "16"]),
    (["generate", "-m", LLAMA, "-p", "a", "--logprobs", 1000], ["--logprobs"]),
    (["generate", "-m", LLAMA, "-p", "a", "--baseline", "sparse"], ["--baseline", "dense"]),
    (["generate", "-m", LLAMA, "-p", "a", "--device", "tpu"], ["--device", "cpu", "cuda"]),
    (["generate", "-m", LLAMA, "-p", "a", "-t", -1], ["--threads"]),
    (["generate", "-m", LLAMA, "-p", "a", "-t", 100000], ["--threads"]),
    (["generate", "-m", LLAMA, "-p", "a", "--log-level", "loud"], ["--log-level"]),
    (["generate", "-m", LLAMA, "-p", "a", "--block-size", 7], ["--block-size", "16"]),
    (["generate", "-m", LLAMA, "-p", "a", "--max-num-seqs", 0], ["--max-num-seqs"]),
    (["generate", "-m", LLAMA, "-p", "a", "--max-model-len", 513], ["--max-model-len", "513", "512"]),
    (["generate", "-m", LLAMA, "-p", "a", "--gpu-memory-utilization", 0], ["--gpu-memory-utilization"]),
    (["generate", "-m", LLAMA, "-p", "a", "--gpu-memory-utilization", "1e-9"], ["--gpu-memory-utilization", "1e-9", "[0.01, 1]"]),
    (["generate", "-m", LLAMA, "-p", "a", "--tp", 0], ["--tp"]),
    (["generate", "-m", LLAMA, "-p", "a", "--tp", 65], ["--tp"]),
    (["generate", "-m", LLAMA, "-p", "a", "-tp", "two"], ["--tp", "two"]),
    (["generate", "-m", LLAMA, "-p", "a", "-tp=two"], ["--tp", "two"]),
    (["generate", "-m", LLAMA, "-p", "a", "-tp3"], ["--tp 3", "1, 2, 4"]),
    (["generate", "-m", LLAMA, "-p", "a", "--logprobs", 2], ["--logprobs", "--json"]),
    (["generate", "-m", LLAMA, "-f", ""], ["-f", "empty"]),
    (["score", "-m", LLAMA], ["--tokens"]),
    (["score", "-m", LLAMA, "--tokens", "1,x"], ["x"]),
    (["score", "-m", LLAMA, "--tokens", "1,-2"], ["-2"]),
    (["score", "-m", LLAMA, "--tokens", "1,99999999999"], ["99999999999"]),
    (["score", "-m", LLAMA, "--tokens", ", ,"], ["token"]),
    (["score", "-m", LLAMA, "--tokens", " "], ["--tokens"]),
    (["score", "-m", LLAMA, "--tokens", "1,,2"], ["--tokens", "comma"]),
    (["score", "-m", LLAMA, "--tokens", "1,2,"], ["--tokens", "comma"]),
    (["score", "-m", LLAMA, "--tokens", "1,2048"], ["--tokens", "2048", "2047"]),
    (["score", "-m", LLAMA, "--tokens", ",".join(["5"] * 513)], ["--tokens", "513", "512"]),
    (["score", "-m", LLAMA, "--tokens", "1", "--tokens-file", "b"], ["--tokens-file"]),
    (["score", "-m", LLAMA, "--tokens", "1", "--top", 500], ["--top"]),
    (["tokenize"], ["--model"]),
    (["tokenize", "-m", LLAMA, "--bos"], ["--bos"]),
    (["perplexity", "-m", LLAMA], ["-f"]),
    (["perplexity", "-m", LLAMA, "-f", LLAMA / "config.json", "--ctx", 0], ["--ctx"]),
    (["perplexity", "-m", LLAMA, "-f", LLAMA / "config.json", "--ctx", 512], ["--ctx", "511"]),
    (["perplexity", "-m", LLAMA, "-f", LLAMA / "config.json", "--ctx", 64, "--stride", 65], ["--stride", "64"]),
    (["perplexity", "-m", LLAMA, "-f", LLAMA / "config.json", "--convention", "gptq"], ["--convention", "gptq", "wanda"]),
    (["perplexity", "-m", LLAMA, "-f", LLAMA / "config.json", "--convention", "wanda", "--stride", 8], ["--stride", "wanda"]),
    (["prune", "-m", LLAMA], ["--output"]),
    (["prune", "-m", LLAMA, "-o", ""], ["--output", "empty"]),
    (["pack", "-m", LLAMA, "-o", ""], ["--output", "empty"]),
    (["prune", "-m", LLAMA, "-o", "out", "--sparsity", 1.5], ["--sparsity", "0..1"]),
    (["prune", "-m", LLAMA, "-o", "out", "--sparsity", "nan"], ["--sparsity"]),
    (["prune", "-m", LLAMA, "-o", "out", "--method", "wanda"], ["--method wanda", "--calibration"]),
    (["prune", "-m", LLAMA, "-o", "out", "--method", "sparsegpt"], ["--method sparsegpt", "--calibration"]),
    (["prune", "-m", LLAMA, "-o", "out", "--allocation", "owl"], ["--allocation owl", "--calibration"]),
    (["prune", "-m", LLAMA, "-o", "out", "--layer-sparsity", "0.5,0.6"], ["--layer-sparsity", "2 numbers", "6 layers"]),
    (["prune", "-m", LLAMA, "-o", "out", "--layer-sparsity", "0.5,many"], ["--layer-sparsity", "many"]),
    (["prune", "-m", LLAMA, "-o", "out", "--layer-sparsity", "0.5,,0.6,0.6,0.6,0.6,0.6"], ["--layer-sparsity", "empty item"]),
    (["prune", "-m", LLAMA, "-o", "out", "--method", "wanda", "--calibration", program.VALID_TEXT, "--scope", "layer"],
     ["--scope layer", "magnitude"]),
    (["prune", "-m", LLAMA, "-o", "out", "--method", "wanda", "--calibration", program.VALID_TEXT,
      "--calibration-length", 513], ["--calibration-length 513", "512"]),
    (["prune", "-m", LLAMA, "-o", "out", "--method", "wanda", "--calibration", program.VALID_TEXT,
      "--calibration-samples", 0], ["--calibration-samples", "0"]),
    (["prune", "-m", LLAMA, "-o", "out", "--method", "sparsegpt", "--dampening", -1], ["--dampening", "-1"]),
    (["prune", "-m", LLAMA, "-o", "out", "--method", "lottery"], ["--method", "lottery"]),
    (["prune", "-m", LLAMA, "-o", "out", "--scope", "block"], ["--scope", "row", "layer"]),
    (["pack", "-m", LLAMA, "-o", "out", "--min-sparsity", 2], ["--min-sparsity"]),
    (["inspect"], ["-m", "--config"]),
    (["inspect", "-m", LLAMA, "--config", CONFIG], ["-m", "--config"]),
    (["inspect", "--config", CONFIG, "--plan", "-tp", 5], ["--tp 5", "1, 2, 3, 4, 6, 12"]),
    (["inspect", "--config", CONFIG, "--plan", "--max-model-len", 4096], ["--max-model-len", "2048"]),
    (["inspect", "--config", CONFIG, "--sparsity", 1.1], ["--sparsity"]),
    (["inspect", "-m", LLAMA, "--sparsity", 0.5], ["--sparsity", "--config"]),
    (["inspect", "-m", LLAMA, "--gpu-memory", 1 << 34], ["--gpu-memory", "--plan"]),
    (["bench", "latency"], ["-m", "--config"]),
    (["bench", "latency", "-m", LLAMA, "--config", CONFIG], ["-m", "--config"]),
    (["bench", "latency", "-m", LLAMA, "--sparsity", 0.5], ["--sparsity", "--config"]),
    (["bench", "throughput", "-m", LLAMA, "--sparsity", 0.5], ["--sparsity", "--config"]),
    (["serve", "-m", LLAMA, "--sparsity", 0.5], ["--sparsity", "--config"]),
    (["bench", "latency", "-m", LLAMA, "--batch-size", 0], ["--batch-size"]),
    (["bench", "latency", "-m", LLAMA, "--output-len", "ten"], ["--output-len", "ten"]),
    (["bench", "latency", "-m", LLAMA, "--input-len", 400, "--output-len", 400], ["--input-len 400", "--output-len 400", "512"]),
    (["bench", "kernel", "--shapes", "128"], ["--shapes", "128"]),
    (["bench", "kernel", "--shapes", "0x5"], ["--shapes", "0x5"]),
    (["bench", "kernel", "--shapes", "64x64,"], ["--shapes"]),
    (["bench", "kernel", "--shapes", "64x64", "-N", "0"], ["-N", "0"]),
    (["bench", "kernel", "--shapes", "64x64", "-N", "8,x"], ["-N", "x"]),
    (["bench", "kernel", "--shapes", "64x64", "-N", "1,,2"], ["-N", "'1,,2' has an empty item"]),
    (["bench", "kernel", "--shapes", "64x64", "--tokens=1,"], ["-N", "empty item"]),
    (["bench", "kernel", "--shapes", "64x64", "-N", ",1"], ["-N", "empty item"]),
    (["bench", "kernel", "--shapes", "64x64", "-N", ","], ["-N", "empty item"]),
    (["bench", "kernel", "--shapes", "64x64", "-N", ""], ["-N", "empty item"]),
    (["bench", "kernel", "--shapes", "64x64", "--sparsity", "1.5"], ["--sparsity"]),
    (["bench", "kernel", "--shapes", "64x64", "--sparsity", "0.5,,"], ["--sparsity", "empty item"]),
    (["bench", "kernel", "--shapes", "64x64", "--kernel", "auto,"], ["--kernel", "empty item"]),
    (["bench", "latency", "-m", LLAMA, "--batch-size", "1,,2"], ["--batch-size", "empty item"]),
    (["bench", "serve", "--request-rate", "20,,40"], ["--request-rate", "empty item"]),
    (["bench", "kernel", "--shapes", "64x64", "--device", "cpu", "--kernel", "smbd"], ["--kernel"]),
    (["bench", "kernel", "--shapes", "64x64", "--kernel", "best"], ["--kernel", "smbd"]),
]

BAD_FILES = [  # arguments, what the line must name
    (["generate", "-m", "nowhere", "-p", "a"], "nowhere"),
    (["generate", "-m", LLAMA / "config.json", "-p", "a"], "config.json: a file"),
    (["generate", "-m", LLAMA, "-f", "nofile.txt"], "nofile.txt"),
    (["generate", "-m", LLAMA, "-f", "."], ".: is a directory"),
    (["perplexity", "-m", LLAMA, "-f", "."], ".: is a directory"),
    (["generate", "-m", LLAMA, "--prompts", "nofile.jsonl"], "nofile.jsonl"),
    (["score", "-m", LLAMA, "--tokens-file", "nofile.ids"], "nofile.ids"),
    (["score", "-m", "nowhere", "--tokens", "1"], "nowhere"),
    (["tokenize", "-m", "nowhere"], "nowhere"),
    (["detokenize", "-m", "nowhere"], "nowhere"),
    (["perplexity", "-m", LLAMA, "-f", "nofile.txt"], "nofile.txt"),
    (["perplexity", "-m", LLAMA, "-f", LLAMA / "config.json", "--ctx", 9, "--compare", "nowhere"], "nowhere"),
    (["perplexity", "-m", LLAMA, "-f", LLAMA / "config.json", "--ctx", 9, "--compare", OPT], "2056"),
    (["perplexity", "-m", LLAMA, "-f", "/dev/null"], "too short"),
    (["inspect", "-m", "nowhere"], "nowhere"),
    (["inspect", "--config", "nowhere.json"], "nowhere.json"),
    (["inspect", "-m", LLAMA / "config.json" / "x"], "x: cannot be reached: Not a directory"),
    (["bench", "latency", "--config", LLAMA / "config.json" / "x"], "x: cannot be reached: Not a directory"),
    (["pack", "-m", "nowhere", "-o", "out"], "nowhere"),
    (["pack", "-m", LLAMA, "-o", "no/such/parent"], "no/such"),
    (["pack", "-m", LLAMA, "-o", LLAMA], "demo-llama"),
    (["prune", "-m", "nowhere", "-o", "out"], "nowhere"),
    (["prune", "-m", LLAMA, "-o", "out", "--method", "wanda", "--calibration", "nofile.txt"], "nofile.txt"),
    (["prune", "-m", LLAMA, "-o", "out", "--method", "wanda", "--calibration", "/dev/null"], "no tokens"),
    (["prune", "-m", LLAMA, "-o", "no/such/parent", "--method", "wanda", "--calibration", program.VALID_TEXT], "no/such"),
    (["prune", "-m", LLAMA, "-o", LLAMA, "--method", "wanda", "--calibration", program.VALID_TEXT], "demo-llama"),
    (["bench", "latency", "--config", "nowhere.json"], "nowhere.json"),
    (["bench", "kernel", "--shapes", "64x64", "-N", "1", "--sparsity", "0.5", "--csv", "no/such/dir.csv"], "no/such/dir.csv"),
    (["bench", "latency", "-m", LLAMA, "--csv", "no/such/dir.csv"], "no/such/dir.csv"),
    (["generate", "-m", LLAMA, "-p", "word " * 600, "-n", "1"], "512"),
    (["generate", "-m", LLAMA, "-p", "a", "-n", "512"], "512"),
    (["generate", "-m", LLAMA, "-p", "a", "-n", "100", "--num-kv-blocks", "2"], "32"),
    (["generate", "-m", LLAMA, "-p", "a", "--kv-cache-memory", "10"], "--kv-cache-memory"),
]

BAD_PROMPT_LINES = [
    ('"just text"', "line 1"),
    ('{"prompt": 5}', "prompt"),
    ('{"n": 5}', "prompt"),
    ('{"prompt": "a", "n": 0}', "n"),
    ('{"prompt": "a", "n": "7"}', "n"),
    ('{"prompt": "a", "seed": -1}', "seed"),
    ('{"prompt": "a", "stop": [""]}', "stop"),
    ('{"prompt": "a", "stop": 5}', "stop"),
    ('{"prompt": "a", "temperature": 1}', "temperature"),
    ('{"prompt": "a"', "p.jsonl line 1: not valid JSON"),
    ('{"prompt": "a"}\n{"prompt": "a", "n": 3, "n": 4}', 'p.jsonl line 2: key "n" appears twice'),
    (json.dumps({"prompt": "a", "stop": ["x"] * 17}), ("p.jsonl line 1: ", "17 stop strings")),
    ('{"prompt": "a"}\n{"prompt": "a", "n": 512}', ("p.jsonl line 2: ", "512 new")),
    (json.dumps({"prompt": "word " * 600}), ("p.jsonl line 1: ", "602 tokens")),
    ("", "no prompts"),
]

BAD_CONFIGS = [  # changes to a good config.json, what the line must name
    ({"vocab_size": -1}, "vocab_size"),
    ({"vocab_size": 10**12}, "vocab_size"),
    ({"hidden_size": 0}, "hidden_size"),
    ({"hidden_size": "128"}, "hidden_size"),
    ({"num_attention_heads": 3}, "heads"),
    ({"num_key_value_heads": 3}, "heads"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ({"intermediate_size": None}, "intermediate_size"),
    ({"hidden_act": "swish7"}, "swish7"),
    ({"architectures": ["GPTBigCodeForCausalLM"], "model_type": "gpt_bigcode"}, "GPTBigCode"),
    ({"max_position_embeddings": 1e300}, "max_position_embeddings"),
    ({"rope_theta": -1}, "rope_theta"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "yarn"),
    ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {**LLAMA3_SCALING}}, ("rope_scaling", "rope_parameters")),
]


class BadInput(program.ProgramTest):
    def test_bad_flags(self):
        self.assertGreaterEqual(len(BAD_FLAGS), 60)
        for arguments, says in BAD_FLAGS:
            with self.subTest(arguments=arguments):
                self.refused(USAGE, arguments, says=says)

    def test_bad_files(self):
        for arguments, says in BAD_FILES:
            with self.subTest(arguments=arguments):
                self.refused(FAILURE, arguments, says=says)
        self.assertEqual(os.listdir(self.tmp), [], "a refusal leaves nothing behind")

    def test_bad_prompt_lines(self):
        for line, says in BAD_PROMPT_LINES:
            with self.subTest(line=line):
                self.refused(FAILURE, ["generate", "-m", LLAMA, "--prompts", self.file("p.jsonl", line + "\n")], says=says)

    def test_bad_configs(self):
        for changes, says in BAD_CONFIGS:
            with self.subTest(changes=changes):
                config = self.config(**changes)
                self.refused(FAILURE, ["bench", "latency", "--config", config], says=says)
        for text in ("", "{", "[]", "null", '{"architectures": 5}', "[" * 100000, "\x00\xff"):
            with self.subTest(text=text[:20]):
                self.refused(FAILURE, ["inspect", "--config", self.file("config.json", text)], says="config.json")

    def test_missing_backend(self):
        if self.json("doctor", "--device", "cpu")["cuda_built"]:
            self.skipTest("this build has the CUDA backend")
        for arguments in (["generate", "-m", LLAMA, "-p", "a"], ["score", "-m", LLAMA, "--tokens", "1"],
                          ["bench", "latency", "-m", LLAMA], ["bench", "kernel", "--shapes", "64x64"]):
            self.refused(None, [*arguments, "--device", "cuda"], says="cuda")

    def test_bad_ids_in_files(self):
        """The same ids that are a usage error in a flag: what a file holds is a failure."""
        for text, says in (("1 2 three", "three"), ("1,-2", "-2"), ("1,,2", "comma"), ("2048", "2047"), ("99999999999", "99999999999")):
            with self.subTest(text=text):
                path = self.file("ids.txt", text)
                self.refused(FAILURE, ["score", "-m", LLAMA, "--tokens-file", path], says=("ids.txt", says))
                self.refused(FAILURE, ["perplexity", "-m", LLAMA, "--tokens-file", path], says=says)
                self.refused(FAILURE, ["detokenize", "-m", LLAMA], stdin=text.encode(), says=says)
        self.refused(FAILURE, ["score", "-m", LLAMA, "--tokens-file", self.file("ids.txt", " \n")], says="no token ids")
        self.refused(FAILURE, ["score", "-m", LLAMA, "--tokens-file", self.file("ids.txt", "1 2\n1 x\n")], says="line 2")
        self.refused(FAILURE, ["score", "-m", LLAMA, "--tokens-file", self.file("ids.txt", "5 " * 513)], says=("513", "512"))

    def damaged(self, **files):
        """A copy of the LLaMA demo in which some files are other than they should be; None removes one."""
        shutil.rmtree(self.tmp / "copy", ignore_errors=True)
        shutil.copytree(LLAMA, self.tmp / "copy")
        for name, content in files.items():
            path = self.tmp / "copy" / name.replace("__", ".")
            path.unlink() if content is None else path.write_bytes(content)
        return "copy"

    def test_damaged_directories(self):
        weights = (LLAMA / "model.safetensors").read_bytes()
        size = struct.unpack("<Q", weights[:8])[0]
        header = json.loads(weights[8 : 8 + size])
        name = next(n for n in header if n.endswith("tca_bme.bitmaps"))

        def rewritten(change):
            copy = json.loads(weights[8 : 8 + size])
            change(copy)
            text = json.dumps(copy).encode()
            text += b" " * (size - len(text)) if len(text) <= size else b""
            return struct.pack("<Q", len(text)) + text + weights[8 + size :]

        def offsets(begin, end):
            return lambda h: h[name].update(data_offsets=[begin, end])

        tokenizer = (LLAMA / "tokenizer.model").read_bytes()
        cases = {
            "truncated": {"model__safetensors": weights[: len(weights) // 2]},
            "header only": {"model__safetensors": weights[: 8 + size]},
            "seven bytes": {"model__safetensors": weights[:7]},
            "empty": {"model__safetensors": b""},
            "huge header": {"model__safetensors": struct.pack("<Q", 1 << 60) + weights[8:]},
            "no JSON": {"model__safetensors": struct.pack("<Q", 8) + b"notjson!" + weights[8:]},
            "missing tensor": {"model__safetensors": rewritten(lambda h: h.pop(name))},
            "offsets out of range": {"model__safetensors": rewritten(offsets(0, 1 << 40))},
            "offsets backwards": {"model__safetensors": rewritten(offsets(64, 0))},
            "offsets overlap": {"model__safetensors": rewritten(offsets(*header[next(iter(k for k in header if k != name and k != "__metadata__"))]["data_offsets"]))},
            "unknown dtype": {"model__safetensors": rewritten(lambda h: h[name].update(dtype="F4"))},
            "wrong shape": {"model__safetensors": rewritten(lambda h: h[name].update(shape=[3, 3]))},
            "no weights": {"model__safetensors": None},
            "no config": {"config__json": None},
            "config of another size": {"config__json": (LLAMA / "config.json").read_bytes().replace(b"640", b"704")},
            "broken tokenizer": {"tokenizer__model": tokenizer[:1000]},
            "empty tokenizer": {"tokenizer__model": b""},
            "no tokenizer": {"tokenizer__model": None},
        }
        for label, files in cases.items():
            with self.subTest(label):
                directory = self.damaged(**files)
                self.refused(FAILURE, ["generate", "-m", directory, "-p", "a", "-n", "2"])
                if "model__safetensors" in files:
                    self.refused(FAILURE, ["inspect", "-m", directory])
                    self.refused(FAILURE, ["pack", "-m", directory, "-o", "out"])
                    self.assertFalse((self.tmp / "out").exists())

    def test_unreadable_stdin(self):
        for arguments in (("tokenize",), ("detokenize",), ("generate", "-f", "-")):
            directory = os.open(self.tmp, os.O_RDONLY)
            try:
                done = subprocess.run(command(arguments[0], "-m", LLAMA, *arguments[1:]), stdin=directory,
                                      capture_output=True, timeout=60)
            finally:
                os.close(directory)
            self.assertEqual((done.returncode, done.stdout), (1, b""), arguments)
            self.assertIn(b"stdin: reading failed", done.stderr)

    def test_why_a_model_cannot_be_reached(self):
        """Not reported as missing. Root may enter every directory, but gets out of no loop of links."""
        os.mkdir(self.tmp / "model")
        os.symlink("config.json", self.tmp / "model" / "config.json")
        os.symlink("loop", self.tmp / "loop")
        causes = [("model", "model/config.json: cannot be reached: Too many levels"),
                  ("loop", "loop: cannot be reached: Too many levels")]
        if os.geteuid() != 0:
            self.file("closed/config.json", "{}")
            os.chmod(self.tmp / "closed", 0)
            self.addCleanup(os.chmod, self.tmp / "closed", 0o700)
            causes += [("closed", "closed/config.json: cannot be reached: Permission denied"),
                       ("closed/model", "closed/model: cannot be reached: Permission denied")]
        for directory, says in causes:
            for arguments in (("inspect",), ("tokenize",), ("score", "--tokens", "1,2"), ("pack", "-o", "out")):
                with self.subTest(directory=directory, command=arguments[0]):
                    self.refused(FAILURE, [*arguments, "-m", directory], says=says)

    def test_control_characters_are_shown_and_not_obeyed(self):
        name = "\x1b[31mred\r\n\x7f\u009b\u00fc\u732b" + os.fsdecode(b"\xff")
        os.mkdir(self.tmp / name)
        self.file(f"{name}/file", "x")
        self.refused(FAILURE, ["pack", "-m", LLAMA, "-o", name],
                     says="\\x1b[31mred\\x0d\\x0a\\x7f\\xc2\\x9b\u00fc\u732b\\xff: the output directory")
        line = json.dumps({"prompt": "a", "\x1b[2J": 1})
        self.refused(FAILURE, ["generate", "-m", LLAMA, "--prompts", self.file("p.jsonl", line)], says='"\\x1b[2J"')
        self.refused(USAGE, ["\x1b[31m"], says="'\\x1b[31m'")

    def test_side_files_that_cannot_be_copied(self):
        shutil.copytree(LLAMA, self.tmp / "model")
        for make in (os.mkdir, os.mkfifo, lambda path: os.symlink("nowhere", path)):
            path = self.tmp / "model" / "LICENSE"
            make(path)
            calibrated = ["prune", "--method", "wanda", "--calibration", program.VALID_TEXT, "--calibration-samples", 1]
            for arguments in (["pack"], ["pack", "--dense-output"], ["prune"], calibrated):
                self.refused(FAILURE, [*arguments, "-m", "model", "-o", "out"], says="model/LICENSE: cannot be copied: ")
            path.rmdir() if path.is_dir() else path.unlink()
        self.assertEqual(os.listdir(self.tmp), ["model"])

    def test_model_larger_than_memory_is_refused_first(self):
        config = ROOT / "configs" / "models" / "opt-175b.json"
        self.refused(1, ("bench", "latency", "--config", config, "--device", "cpu"), says=("do not fit", "bytes"))

    def test_more_layers_than_configured(self):
        shutil.copytree(LLAMA, self.tmp / "model")
        config = json.loads((LLAMA / "config.json").read_text())
        config["num_hidden_layers"] -= 1
        self.file("model/config.json", json.dumps(config))
        self.refused(1, ("score", "-m", "model", "--tokens", "1,2,3"), says=("model.layers.5.", "num_hidden_layers is 5"))

    def test_output_directory_in_use(self):
        self.file("used/file", "x")
        for arguments in (["pack", "-m", LLAMA, "-o", "used"], ["prune", "-m", LLAMA, "-o", "used"]):
            self.refused(FAILURE, arguments, says="used")
        self.assertEqual(os.listdir(self.tmp / "used"), ["file"])
        self.refused(FAILURE, ["pack", "-m", LLAMA, "-o", "used/file"], says="used/file")

    def test_invalid_utf8(self):
        for directory in (LLAMA, OPT):
            done = self.run_program("tokenize", "-m", directory, stdin=b"ab\xff\xfe\xc3(")
            self.assertIn(done.returncode, (0, 1))
            self.assertLessEqual(done.stderr.count(b"\n"), 1)


if __name__ == "__main__":
    program.main()
