"""The README quotes no figure that its result file does not have (scripts/readme_figures.py)."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def check(text):
    with tempfile.NamedTemporaryFile("w", suffix=".md") as readme:
        readme.write(text)
        readme.flush()
        script = ROOT / "scripts" / "readme_figures.py"
        return subprocess.run([sys.executable, "-B", script, "--check", "--readme", readme.name], capture_output=True, text=True)


class ReadmeFigures(unittest.TestCase):
    def test_are_those_of_the_files(self):
        done = check(README)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_another_figure_is_found(self):
        begin = README.index("<!-- figures: latency -->")
        figure = README.index("×", begin) - 1  # the last digit of the first gain
        altered = README[:figure] + str((int(README[figure]) + 1) % 10) + README[figure + 1:]
        done = check(altered)
        self.assertEqual(done.returncode, 1)
        self.assertIn("+| llama-2-7b | 1 |", done.stdout)

    def test_a_readme_without_blocks_is_refused(self):
        self.assertNotEqual(check("nothing measured\n").returncode, 0)

    def test_a_block_without_its_function_is_refused(self):
        self.assertNotEqual(check("<!-- figures: guesses -->\n<!-- end of figures -->\n").returncode, 0)


if __name__ == "__main__":
    unittest.main()
