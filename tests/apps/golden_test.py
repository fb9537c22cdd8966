"""`score`, `generate` and `perplexity` against what HF transformers computes in float32 from the same weights."""

import array
import json

import program
from program import DEMOS, VALID_TEXT, golden

GAP = 0.02  # greedy continuations may part where the two best tokens are closer than this


class Golden(program.ProgramTest):
    def check_scores(self, directory, worst=0.03):
        cases = golden(directory)["cases"]
        path = self.file("ids.txt", "".join(" ".join(map(str, c["ids"])) + "\n" for c in cases))
        document = self.json("score", "-m", directory, "--tokens-file", path, "--top", 8)
        differences = []
        for case, got in zip(cases, document["sequences"], strict=True):
            self.assertEqual(len(got["token_logprobs"]), len(case["ids"]) - 1)
            differences += [abs(a - b) for a, b in zip(got["token_logprobs"], case["token_logprobs"], strict=True)]
            self.assertEqual(len(got["last_top"]), 8)
            want = dict(zip(case["last_top8_ids"], case["last_top8_logprobs"]))
            # Ranks may swap at the end of the list; what both list must agree, and at least six are listed by both.
            both = [t for t in got["last_top"] if t["id"] in want]
            self.assertGreaterEqual(len(both), 6)
            differences += [abs(t["logprob"] - want[t["id"]]) for t in both]
        self.assertLess(sum(differences) / len(differences), 0.01, directory.name)
        self.assertLess(max(differences), worst, directory.name)

    def test_scores_of_demo_models(self):
        for directory in DEMOS.values():
            self.check_scores(directory)

    def test_scores_of_shared_models(self):
        names = sorted(p.name for p in self.need_assets("hf_goldens").iterdir())
        self.assertEqual(len(names), 5)
        for name in names:
            self.check_scores(self.need_assets(f"hf_goldens/{name}"))

    def test_greedy_of_demo_models(self):
        for directory in DEMOS.values():
            compared = 0
            for case in golden(directory)["cases"]:
                ids = " ".join(map(str, case["ids"])).encode()
                text = self.ok("detokenize", "-m", directory, stdin=ids)[:-1]
                if self.ok("tokenize", "-m", directory, stdin=text).split() != ids.split():
                    continue  # not the ids that a text gives
                prompt = self.file("prompt.txt", text)
                (output,) = self.json("generate", "-m", directory, "-f", prompt, "-n", len(case["greedy"]), "--temp", 0,
                                      "--ignore-eos")["outputs"]
                sure = next((i for i, gap in enumerate(case["greedy_gap"]) if gap < GAP), len(case["greedy"]))
                self.assertEqual(output["prompt_ids"], case["ids"])
                self.assertEqual(output["output_ids"][:sure], case["greedy"][:sure], directory.name)
                compared += 1
            self.assertGreaterEqual(compared, 3, directory.name)

    def test_tokenizer_of_demo_models(self):
        for directory in DEMOS.values():
            for case in golden(directory)["tokenizer"]:
                ids = self.ok("tokenize", "-m", directory, stdin=case["text"].encode()).split()
                self.assertEqual([int(i) for i in ids], case["ids"], (directory.name, case["text"]))

    def test_perplexity_of_demo_models(self):
        for directory in DEMOS.values():
            want = golden(directory)["perplexity"]
            got = self.json("perplexity", "-m", directory, "-f", VALID_TEXT, "--ctx", want["ctx"])
            self.assertEqual(got["tokens"], want["tokens"])
            self.assertAlmostEqual(got["mean_nll"], want["mean_nll"], delta=0.003)
            self.assertAlmostEqual(got["ppl"], want["ppl"], delta=0.004 * want["ppl"])
            self.assertAlmostEqual(got["ppl_error"], want["ppl_error"], delta=0.05 * want["ppl_error"])

    def test_perplexity_of_trained_models(self):
        for name in ("stories260K-hf", "babyllama105-hf"):
            directory = self.need_assets(f"models/{name}")
            for want in json.loads((directory / "golden" / "golden.json").read_text())["perplexity"]:
                ids = array.array("i", (directory / "golden" / want["ids_file"]).read_bytes())
                path = self.file("ids.txt", " ".join(map(str, ids)))
                got = self.json("perplexity", "-m", directory, "--tokens-file", path, "--ctx", want["tokens_per_window"])
                self.assertEqual(got["tokens"], len(ids))
                self.assertAlmostEqual(got["mean_nll"], want["mean_nll"], delta=0.01)

    def test_greedy_of_trained_model(self):
        directory = self.need_assets("models/stories260K-hf")
        for case in json.loads((directory / "golden" / "golden.json").read_text())["prompts"]:
            (output,) = self.json("generate", "-m", directory, "-p", case["prompt"], "-n", 40, "--temp", 0)["outputs"]
            self.assertEqual(output["prompt_ids"], case["ids"])
            if case["min_top1_top2_gap"] > GAP:
                self.assertEqual(output["output_ids"], case["greedy_new_ids"][:40])


if __name__ == "__main__":
    program.main()
