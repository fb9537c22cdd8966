"""Tensor parallelism over CPU ranks gives the tokens of one rank; degrees the heads do not allow are refused."""

import json
import resource
import subprocess

import program
from program import DEMOS, LLAMA, OPT, SLOWNESS, VALID_TEXT, command, golden

PROMPT = "The old man looked at her and said,"


class TensorParallel(program.ProgramTest):
    def test_greedy_tokens(self):
        # Ranks add partial sums in another order, so tokens must agree only up to the first near tie.
        for directory in DEMOS.values():
            prompts = self.file("p.jsonl", "".join(json.dumps({"prompt": p}) + "\n" for p in (PROMPT, "Alice", "")))
            runs = []
            for degree in (("--tp", 1), ("-tp", 2), ("--tp", 4), ("--tensor-parallel", 2)):
                document = self.json("generate", "-m", directory, "--prompts", prompts, "-n", 24, "--temp", 0,
                                     "--logprobs", 2, *degree)
                runs.append(document["outputs"])
            for outputs in runs[1:]:
                for one, many in zip(runs[0], outputs, strict=True):
                    gaps = [t["top"][0]["logprob"] - t["top"][1]["logprob"] for t in one["logprobs"]]
                    sure = next((i for i, gap in enumerate(gaps) if gap < 0.02), len(gaps))
                    self.assertEqual(many["output_ids"][:sure], one["output_ids"][:sure])
                    self.assertGreater(sure, 0)

    def test_scores_and_ranks(self):
        for directory in DEMOS.values():
            case = max(golden(directory)["cases"], key=lambda c: len(c["ids"]))
            ids = ",".join(map(str, case["ids"]))
            for degree in (2, 4):
                document = self.json("score", "-m", directory, "--tokens", ids, "-tp", degree)
                self.assertEqual(document["ranks"], degree)
                got = document["sequences"][0]["token_logprobs"]
                differences = [abs(a - b) for a, b in zip(got, case["token_logprobs"], strict=True)]
                self.assertLess(max(differences), 0.03)
                self.assertLess(sum(differences) / len(differences), 0.01)

    def test_perplexity(self):
        path = self.file("text.txt", VALID_TEXT.read_bytes()[:3000])
        one, two = (self.json("perplexity", "-m", OPT, "-f", path, "--ctx", 128, "-tp", n) for n in (1, 2))
        self.assertAlmostEqual(one["mean_nll"], two["mean_nll"], delta=0.003)

    def test_memory_of_each_rank(self):
        for degree in (1, 2):
            memory = self.json("generate", "-m", LLAMA, "-p", PROMPT, "-n", 2, "-tp", degree)["memory"]
            self.assertEqual(len(memory["ranks"]), degree)
            for field in ("weights_bytes", "kv_bytes", "peak_bytes"):
                self.assertEqual(sum(rank[field] for rank in memory["ranks"]), memory[field])
                self.assertGreater(min(rank[field] for rank in memory["ranks"]), 0)

    def test_illegal_degrees(self):
        for directory in DEMOS.values():
            for degree in (3, 5, 8, 64):
                self.refused(2, ["generate", "-m", directory, "-p", "a", "-tp", degree], says=["--tp", degree, "1, 2, 4"])
        self.refused(2, ["inspect", "-m", LLAMA, "--plan", "--tp", 3], says=["--tp", 3, "1, 2, 4"])

    def test_threads_that_cannot_be_started(self):
        if SLOWNESS > 1:
            self.skipTest("a sanitizer needs more address space than is to be had here")
        stack, refusals = 1 << 30, set()

        def limits(stacks):
            resource.setrlimit(resource.RLIMIT_STACK, (stack, stack))  # of every thread
            resource.setrlimit(resource.RLIMIT_AS, (stack * stacks + (stack >> 1), stack * stacks + (stack >> 1)))

        for stacks in range(1, 9):
            done = subprocess.run(command("score", "-m", LLAMA, "--tokens", "5,6,7", "-tp", 4, "-t", 8, "--device", "cpu"),
                                  capture_output=True, timeout=60,
                                  preexec_fn=lambda: limits(stacks))  # noqa: B023: called at once
            text = done.stderr.decode()
            self.assertIn(done.returncode, (0, 1), text)
            if done.returncode == 1:
                self.assertEqual(text.count("\n"), 1, text)
                self.assertTrue(text.startswith("spinfer: "), text)
                refusals.update(what for what in ("thread of rank", "thread 2 of") if what in text)
        self.assertEqual(refusals, {"thread of rank", "thread 2 of"})

    def test_shared_models(self):
        directory = self.need_assets("hf_goldens/llama-gqa-rope-llama3")  # 8 heads, 2 key-value heads
        case = max(golden(directory)["cases"], key=lambda c: len(c["ids"]))
        ids = ",".join(map(str, case["ids"]))
        for degree in (2, 4, 8):
            got = self.json("score", "-m", directory, "--tokens", ids, "-tp", degree)["sequences"][0]["token_logprobs"]
            self.assertLess(max(abs(a - b) for a, b in zip(got, case["token_logprobs"], strict=True)), 0.03)


if __name__ == "__main__":
    program.main()
