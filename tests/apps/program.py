"""Runs the built program for the command-line tests. SPINFER_PROGRAM and SPINFER_ASSETS say where things are."""

import json
import os
import pathlib
import pty
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("SPINFER_PROGRAM", str(ROOT / "build" / "spinfer"))
ASSETS = pathlib.Path(os.environ.get("SPINFER_ASSETS", ROOT / ".." / "shared" / "assets"))
SLOWNESS = float(os.environ.get("SPINFER_SLOWNESS", "1"))  # of the build: its limits are so much longer
DEMOS = {name: ROOT / "tests" / "data" / name for name in ("demo-llama", "demo-opt")}
LLAMA, OPT = DEMOS["demo-llama"], DEMOS["demo-opt"]
VALID_TEXT = ROOT / "tests" / "data" / "demo_valid.txt"
TINY_CONFIG = {  # for random weights and for checkpoints made by the tests
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, "hidden_size": 128,
    "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}


def golden(directory):
    return json.loads((directory / "golden.json").read_text())


def command(*arguments):
    return [PROGRAM, *map(str, arguments)]


class ProgramTest(unittest.TestCase):
    maxDiff = 2000

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="spinfer-cli-")
        self.addCleanup(folder.cleanup)
        self.tmp = pathlib.Path(folder.name)

    def file(self, name, content):
        path = self.tmp / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def config(self, name="config.json", **changes):
        return self.file(name, json.dumps({**TINY_CONFIG, **changes}))

    def run_program(self, *arguments, stdin=b"", timeout=120):
        """The finished process; stdout and stderr are bytes."""
        return subprocess.run(command(*arguments), input=stdin, capture_output=True, timeout=timeout * SLOWNESS,
                              cwd=self.tmp)

    def ok(self, *arguments, stdin=b""):
        """stdout of a run that must succeed."""
        done = self.run_program(*arguments, stdin=stdin)
        self.assertEqual(done.returncode, 0, f"{arguments}: {done.stderr.decode(errors='replace')}")
        return done.stdout

    def json(self, *arguments, stdin=b""):
        """The one JSON document on stdout, with nothing else there or on stderr."""
        done = self.run_program(*arguments, "--json", stdin=stdin)
        self.assertEqual(done.returncode, 0, f"{arguments}: {done.stderr.decode(errors='replace')}")
        self.assertEqual(done.stderr, b"", arguments)
        self.assertEqual(done.stdout.count(b"\n"), 1, "one document on one line")
        return json.loads(done.stdout.decode("utf-8"))

    def refused(self, status, arguments, *, says=(), stdin=b""):
        """Exit status (1 or 2; None: either), no stdout, exactly one line on stderr holding all of `says`."""
        done = self.run_program(*arguments, stdin=stdin)
        text = done.stderr.decode("utf-8")
        shown = f"{' '.join(map(str, arguments))}\n-> {done.returncode}: {text}"
        if status is None:
            self.assertIn(done.returncode, (1, 2), shown)
        else:
            self.assertEqual(done.returncode, status, shown)
        self.assertEqual(done.stdout, b"", shown)
        self.assertEqual(text.count("\n"), 1, shown)
        self.assertTrue(text.startswith("spinfer: "), shown)
        self.assertTrue(text[:-1].isprintable(), ascii(shown))
        self.assertLess(len(text), 600, shown)
        for part in [says] if isinstance(says, str) else says:
            self.assertIn(str(part), text, shown)

    def terminal(self):
        """(master, slave) of a new pseudo-terminal; both are the caller's to close."""
        try:
            return pty.openpty()
        except OSError as error:
            self.skipTest(f"no pseudo-terminals here (is /dev/pts mounted?): {error}")

    def need_assets(self, path=""):
        directory = ASSETS / path
        if not directory.exists():
            self.skipTest(f"{directory} is not there")
        return directory


def main():
    unittest.main(verbosity=1)
