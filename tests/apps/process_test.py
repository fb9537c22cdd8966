"""How the program ends: SIGINT, a reader that goes away, a full disk."""

import json
import os
import signal
import struct
import subprocess
import time

import program
from program import LLAMA, ROOT, SLOWNESS, command


class Interrupt(program.ProgramTest):
    def interrupt(self, *arguments, when, by=signal.SIGINT):
        """Starts the program, sends it a signal once `when(process)` holds, and returns (status, seconds until the end)."""
        process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.tmp)
        try:
            deadline = time.monotonic() + 60 * SLOWNESS
            while not when(process):
                self.assertIsNone(process.poll(), "it ended before it could be interrupted")
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.005)
            start = time.monotonic()
            process.send_signal(by)
            _, errors = process.communicate(timeout=20 * SLOWNESS)
            self.assertEqual(errors, b"")
            return process.returncode, time.monotonic() - start
        finally:
            process.kill()
            process.wait()

    def after(self, seconds):
        start = time.monotonic()
        return lambda process: time.monotonic() - start > seconds

    def test_generate(self):
        lines = "".join(json.dumps({"prompt": f"Chapter {i}"}) + "\n" for i in range(3000))
        prompts = self.file("prompts.jsonl", lines)
        status, seconds = self.interrupt("generate", "-m", LLAMA, "--prompts", prompts, "-n", 400, "--ignore-eos",
                                         when=self.after(0.5))
        self.assertEqual(status, 130)
        self.assertLess(seconds, 5 * SLOWNESS)

    def test_generate_while_streaming(self):
        first_text = lambda process: len(os.read(process.stdout.fileno(), 1)) == 1  # noqa: E731
        status, _ = self.interrupt("generate", "-m", LLAMA, "-p", "The", "-n", 500, "-t", 1, when=first_text)
        self.assertEqual(status, 130)

    def test_loading(self):
        config = ROOT / "configs" / "models" / "opt-1.3b.json"
        status, seconds = self.interrupt("bench", "latency", "--config", config, "-t", 1, when=self.after(0.3))
        self.assertEqual(status, 130)
        self.assertLess(seconds, 5 * SLOWNESS)

    def test_while_libraries_start(self):
        """Long before main: the loader says on stderr when it begins to initialise the shared libraries."""
        process = subprocess.Popen(command("tokenize", "-m", LLAMA), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, env={**os.environ, "LD_DEBUG": "libs"})
        try:
            if not any(b"calling init:" in line for line in process.stderr):
                self.skipTest("this system's loader does not say what it does")
            process.send_signal(signal.SIGINT)
            process.stderr.read()
            self.assertEqual(process.wait(timeout=20 * SLOWNESS), 130)
        finally:
            process.kill()
            process.communicate()

    def test_reading_stdin(self):
        process = subprocess.Popen(command("tokenize", "-m", LLAMA), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        self.assertEqual(process.wait(timeout=20 * SLOWNESS), 130)
        self.assertLess(time.monotonic() - start, 5 * SLOWNESS)
        process.communicate()

    def make_large_checkpoint(self):
        """1.2 GB of zeros that take no disk: packing them takes a while."""
        d, f, v, layers = 2048, 8192, 512, 9
        self.config("large/config.json", hidden_size=d, intermediate_size=f, num_hidden_layers=layers,
                    num_attention_heads=16, num_key_value_heads=16)
        shapes = {"model.embed_tokens.weight": [v, d], "model.norm.weight": [d], "lm_head.weight": [v, d]}
        for layer in range(layers):
            p = f"model.layers.{layer}."
            shapes.update({p + "input_layernorm.weight": [d], p + "post_attention_layernorm.weight": [d],
                           **{p + f"self_attn.{x}_proj.weight": [d, d] for x in "qkvo"},
                           p + "mlp.gate_proj.weight": [f, d], p + "mlp.up_proj.weight": [f, d],
                           p + "mlp.down_proj.weight": [d, f]})
        header, end = {}, 0
        for name, shape in shapes.items():
            size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header).encode()
        path = self.file("large/model.safetensors", struct.pack("<Q", len(text)) + text)
        os.truncate(path, 8 + len(text) + end)

    def test_pack_and_prune_leave_no_output(self):
        self.make_large_checkpoint()
        for arguments in (("pack", "-m", "large", "-o", "out"),
                          ("prune", "-m", "large", "-o", "out", "--sparsity", 0.6, "--dense-output")):
            began = lambda process: len(os.listdir(self.tmp)) > 1  # noqa: E731
            status, seconds = self.interrupt(*arguments, "-t", 1, when=began)
            self.assertEqual(status, 130)
            self.assertLess(seconds, 5 * SLOWNESS)
            self.assertEqual(os.listdir(self.tmp), ["large"])

    def test_sigterm_cleans_up_as_sigint_does(self):
        self.make_large_checkpoint()
        began = lambda process: len(os.listdir(self.tmp)) > 1  # noqa: E731
        for by in (signal.SIGTERM, signal.SIGHUP):
            status, _ = self.interrupt("pack", "-m", "large", "-o", "out", "-t", 1, when=began, by=by)
            self.assertEqual(status, 128 + by)
            self.assertEqual(os.listdir(self.tmp), ["large"])


class Terminal(program.ProgramTest):
    def test_progress_bars_only_there_and_erased(self):
        master, slave = self.terminal()
        try:
            arguments = command("prune", "-m", LLAMA, "-o", self.tmp / "out", "--json")
            done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=slave, timeout=60 * SLOWNESS)
            os.close(slave)
            slave = None
            shown = b""
            while chunk := self.read(master):
                shown += chunk
        finally:
            os.close(master)
            if slave is not None:
                os.close(slave)
        self.assertEqual(done.returncode, 0)
        json.loads(done.stdout)
        self.assertIn(b"pruning [", shown)
        self.assertIn(b"100%", shown)
        self.assertTrue(shown.endswith(b"\r\x1b[K"), shown[-40:])

    def read(self, master):
        try:
            return os.read(master, 4096)
        except OSError:  # nobody holds the other end any more
            return b""


class ClosedPipe(program.ProgramTest):
    def close_after_one_byte(self, *arguments):
        process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.tmp)
        try:
            self.assertEqual(len(os.read(process.stdout.fileno(), 1)), 1)
            process.stdout.close()
            self.assertEqual(process.wait(timeout=20 * SLOWNESS), 0, process.stderr.read())
            self.assertEqual(process.stderr.read(), b"")
        finally:
            process.kill()
            process.wait()
            process.stderr.close()

    def test_generate(self):
        self.close_after_one_byte("generate", "-m", LLAMA, "-p", "The", "-n", 300)

    def test_other_output(self):
        self.close_after_one_byte("inspect", "-m", LLAMA)
        self.close_after_one_byte("generate", "--help")

    def test_shell_pipeline(self):
        line = f'"{program.PROGRAM}" generate -m "{LLAMA}" -p The -n 300 | head -c1'
        done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, timeout=60 * SLOWNESS)
        self.assertEqual((done.returncode, len(done.stdout), done.stderr), (0, 1, b""))

    def test_stderr_that_cannot_be_written_is_no_crash(self):
        for line, status in ((f'"{program.PROGRAM}" nope 2>&-', 2),
                             (f'"{program.PROGRAM}" inspect -m nope 2>/dev/full', 1),
                             (f'"{program.PROGRAM}" inspect -m "{LLAMA}" --json >&- 2>&- <&-', 1)):
            self.assertEqual(subprocess.run(["bash", "-c", line], capture_output=True, timeout=60 * SLOWNESS).returncode, status, line)

    def test_full_disk_is_a_failure(self):
        if not os.path.exists("/dev/full"):
            self.skipTest("/dev/full is not there")
        with open("/dev/full", "wb") as full:
            done = subprocess.run(command("inspect", "-m", LLAMA), stdout=full, stderr=subprocess.PIPE, timeout=60 * SLOWNESS)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stderr.count(b"\n"), 1)
        self.assertIn(b"No space left", done.stderr)


if __name__ == "__main__":
    program.main()
