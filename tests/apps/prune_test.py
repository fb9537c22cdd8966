"""`prune` with calibration text: methods, options, and a run killed in the middle."""

import os
import shutil
import signal
import subprocess
import time

import program
from program import LLAMA, OPT, SLOWNESS, VALID_TEXT, command

SHORT = ("--calibration", VALID_TEXT, "--calibration-samples", 4, "--calibration-length", 128)  # its first 8 KB


class Prune(program.ProgramTest):
    def test_methods(self):
        weights = set()
        for model, name in ((LLAMA, "llama"), (OPT, "opt")):
            for method in ("magnitude", "wanda", "sparsegpt"):
                out = f"{name}-{method}"
                document = self.json("prune", "-m", model, "-o", out, "--method", method, "--sparsity", 0.75, *SHORT)
                self.assertAlmostEqual(document["sparsity"], 0.75, delta=0.002)
                self.assertEqual(document["method"], method)
                self.assertEqual(document["linears"], document["packed_linears"])
                if method != "magnitude":
                    self.assertEqual((document["calibration_samples"], document["calibration_length"]), (4, 128))
                weights.add((self.tmp / out / "model.safetensors").read_bytes())
        self.assertEqual(len(weights), 6, "each method goes its own way")
        self.assertEqual(len(os.listdir(self.tmp)), 6, "nothing but the outputs")

    def test_order_of_quality(self):
        """On a dense trained model, calibrated with one part of a text and measured on another."""
        model = self.need_assets("models/stories260K-hf")
        text = self.need_assets("text/tiny.utf8").read_bytes()
        calibration, evaluation = self.file("calibration", text[:150000]), self.file("evaluation", text[-8000:])
        for sparsity in (0.5, 0.6):
            ppl = []
            for method in ("sparsegpt", "wanda", "magnitude"):
                out = f"{method}-{sparsity}"
                self.ok("prune", "-m", model, "-o", out, "--method", method, "--sparsity", sparsity, "--calibration",
                        calibration, "--calibration-samples", 32, "--calibration-length", 256)
                ppl.append(self.json("perplexity", "-m", out, "-f", evaluation, "--ctx", 255)["ppl"])
            self.assertLessEqual(ppl[0], ppl[1], ppl)
            self.assertLess(ppl[1], ppl[2], ppl)

    def test_layer_sparsity_and_owl(self):
        given = self.json("prune", "-m", LLAMA, "-o", "given", "--layer-sparsity", "0.5,0.6,0.7,0.8,0.9,1")
        self.assertAlmostEqual(given["sparsity"], 0.75, delta=0.003)
        of_layer = [x["sparsity"] for x in self.json("inspect", "-m", "given")["linears"] if "down_proj" in x["name"]]
        self.assertEqual([round(s, 1) for s in of_layer], [0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
        owl = self.json("prune", "-m", LLAMA, "-o", "owl", "--method", "wanda", "--sparsity", 0.7, "--allocation", "owl", *SHORT)
        self.assertAlmostEqual(owl["sparsity"], 0.7, delta=0.003)
        self.assertAlmostEqual(max(owl["layer_sparsity"]) - min(owl["layer_sparsity"]), 0.16, places=6)

    def test_samples_as_the_text_allows(self):
        ids = self.file("ids", " ".join(["5"] * 200))
        few = self.json("prune", "-m", LLAMA, "-o", "few", "--method", "wanda", "--calibration-tokens", ids,
                        "--calibration-length", 64)
        self.assertEqual((few["calibration_samples"], few["calibration_length"]), (3, 64))
        one = self.json("prune", "-m", LLAMA, "-o", "one", "--method", "wanda", "--calibration-tokens", ids)
        self.assertEqual((one["calibration_samples"], one["calibration_length"]), (1, 201))

    def kill_when(self, arguments, done, by):
        process = subprocess.Popen(command(*arguments), cwd=self.tmp, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60 * SLOWNESS
        while not done() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(by)
        process.communicate()
        return process.returncode

    def test_a_killed_run_goes_on_to_the_same_bytes(self):
        arguments = ("prune", "-m", LLAMA, "--method", "sparsegpt", "--sparsity", 0.6, *SHORT)
        self.ok(*arguments, "-o", "whole")
        wanted = (self.tmp / "whole" / "model.safetensors").read_bytes()
        state = self.tmp / ".out.pruning"
        for by, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
            third = lambda: (state / "layer-00002" / "model.safetensors").exists()  # noqa: E731
            self.assertEqual(self.kill_when((*arguments, "-o", "out"), third, by), status)
            self.assertFalse((self.tmp / "out").exists())
            self.assertTrue(state.is_dir())
            again = self.run_program(*arguments, "-o", "out", "--log-level", "info")
            self.assertEqual(again.returncode, 0, again.stderr)
            self.assertIn(b"going on after", again.stderr)
            self.assertEqual((self.tmp / "out" / "model.safetensors").read_bytes(), wanted)
            self.assertFalse(state.exists())
            shutil.rmtree(self.tmp / "out")

    def test_two_at_once_are_refused(self):
        state = self.tmp / ".out.pruning"
        arguments = command("prune", "-m", LLAMA, "-o", "out", "--method", "sparsegpt", "--calibration", VALID_TEXT, "-t", 1)
        first = subprocess.Popen(arguments, cwd=self.tmp, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            while not (state / "layer-00000").exists() and first.poll() is None:
                time.sleep(0.001)
            self.refused(1, arguments[1:], says="another prune")
        finally:
            first.terminate()
            first.communicate()


if __name__ == "__main__":
    program.main()
