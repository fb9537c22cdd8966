"""bench throughput, bench serve and chat as users run them."""

import contextlib
import http.server
import json
import os
import select
import signal
import subprocess
import threading
import time
import unittest

import live
from program import LLAMA, ROOT, ProgramTest, command

TRACE = ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,20,5\n2023-11-16 18:15:46.9805900,30,8\n"
         "2023-11-16 18:15:47.0805900,900,4\n")
SERIES = [f"{kind}_{name}_ms" for kind in ("mean", "median", "p99") for name in ("ttft", "tpot", "itl", "e2el")]


class Throughput(ProgramTest):
    def test_synthetic_with_a_dense_baseline(self):
        done = self.json("bench", "throughput", "-m", LLAMA, "--num-prompts", 12, "--input-len", 10, "--output-len", 6,
                         "--baseline", "dense")
        for figures in (done["sparse"], done["dense"]):
            self.assertEqual((figures["completed"], figures["failed"]), (12, 0))
            self.assertEqual(figures["total_input_tokens"], 120)
            self.assertEqual(figures["total_output_tokens"], 72)
            for name in [*SERIES, "request_throughput", "output_throughput", "duration_s"]:
                self.assertGreater(figures[name], 0, name)
            self.assertLess(figures["host_gap_ms_mean"], figures["decode_step_ms_mean"])
            self.assertGreaterEqual(figures["p99_ttft_ms"], figures["median_ttft_ms"])
        self.assertGreater(done["speedup"], 0)

    def test_a_time_limit(self):
        figures = self.json("bench", "throughput", "-m", LLAMA, "--num-prompts", 5000, "--input-len", 10, "--output-len", 30,
                            "--max-num-seqs", 4, "--duration", 1)["sparse"]
        self.assertGreater(figures["completed"], 0)
        self.assertEqual(figures["completed"] + figures["unanswered"], 5000)
        self.assertLess(figures["duration_s"], 5)
        self.assertLess(0, figures["saturated_s"])
        self.assertLess(figures["saturated_s"], figures["duration_s"])
        self.assertGreater(figures["saturated_output_throughput"], 0)

    def test_figures_of_nothing_are_none(self):
        """One token has no second one, and in no time nothing is answered."""
        for limits, none in ((("--output-len", 1), ["tpot", "itl"]),
                             (("--duration", 1e-6, "--samples"), ["ttft", "tpot", "itl", "e2el"])):
            arguments = ("bench", "throughput", "-m", LLAMA, "--num-prompts", 2, "--input-len", 4, "--baseline", "dense", *limits)
            done = self.json(*arguments)
            for figures in (done["sparse"], done["dense"]):
                self.assertEqual([name for name in SERIES if figures[name] is None],
                                 [name for name in SERIES if name.split("_")[1] in none])
                self.assertEqual(figures["decode_steps"], 0)
                for name in ("decode_batch_mean", "decode_step_ms_mean", "host_gap_ms_mean", "host_gap_pct"):
                    self.assertIsNone(figures[name], name)
            table = self.ok(*arguments).decode()
            self.assertNotIn("nan", table)
            self.assertRegex(table, r"time per output token +- +- +-\n")
            self.assertIn("decode steps of - requests: - ms each", table)
        self.assertEqual(done["sparse"]["samples"], {"ttft_ms": [], "e2el_ms": [], "input_tokens": [], "output_tokens": []})
        self.assertIsNone(done["speedup"])

    def test_the_time_in_which_requests_waited(self):
        """Has a line if there is such a time: not where all run at once."""
        arguments = ("bench", "throughput", "-m", LLAMA, "--num-prompts", 20, "--input-len", 8, "--output-len", 4)
        self.assertNotIn("in which requests waited", self.ok(*arguments, "--max-num-seqs", 20).decode())
        self.assertIn("in which requests waited", self.ok(*arguments, "--max-num-seqs", 2).decode())

    def test_times_of_a_trace(self):
        """All of these are the same second: none waits for another."""
        times = ("2023-11-16 18:15:46", "2023-11-16T18:15:46.1Z", "2023-11-16 18:15:46.20+00:00",
                 "2023-11-16T19:45:46.3+01:30", "2023-11-15 23:15:46.4-19:00")
        for header, rows in ((TRACE.splitlines()[0], times), ("\ufeff" + TRACE.splitlines()[0], times[:1]),
                             ("\n" + TRACE.splitlines()[0], times[:1])):
            trace = self.file("trace.csv", "\r\n".join([header, *(f"{time},4,2" for time in rows), ""]))
            figures = self.json("bench", "throughput", "-m", LLAMA, "--trace", trace, "--request-rate", "trace", "--duration",
                                30 * live.SLOWNESS)["sparse"]
            self.assertEqual((figures["completed"], figures["unanswered"]), (len(rows), 0))
            self.assertGreater(figures["duration_s"], 0.1 * (len(rows) - 1))

    def test_a_trace_and_its_times(self):
        lines = TRACE.splitlines()
        for rows in (lines[1:], lines[:0:-1]):  # in any order
            trace = self.file("trace.csv", "\n".join([lines[0], *rows]))
            figures = self.json("bench", "throughput", "-m", LLAMA, "--trace", trace, "--request-rate", "trace")["sparse"]
            self.assertEqual(figures["completed"], 3)
            self.assertEqual(figures["total_output_tokens"], 17)
            self.assertEqual(figures["total_input_tokens"], 20 + 30 + 508)
            self.assertEqual(figures["requests_cut_to_model"], 1)
            self.assertGreater(figures["duration_s"], 0.4)
        trace = self.file("trace.csv", TRACE)
        table = self.ok("bench", "throughput", "-m", LLAMA, "--trace", trace, "--baseline", "dense").decode()
        self.assertIn("longer than the model takes, cut to it: 1", table)
        figures = self.json("bench", "throughput", "-m", LLAMA, "--trace", trace, "--num-prompts", 2)["sparse"]
        self.assertEqual("fit in the CPU's cache" in table, figures["weights_in_cache"])
        self.assertEqual(figures["completed"], 2)

    def test_bad_input(self):
        for status, says, arguments in (
                (2, "--trace", ["--request-rate", "trace"]),
                (2, "--request-rate", ["--request-rate", "0"]),
                (2, "--request-rate", ["--request-rate", "nan"]),
                (2, "--input-len", ["--input-len", 0]),
                (1, "/nowhere", ["--trace", "/nowhere"]),
                (1, "first line", ["--trace", self.file("a.csv", "a,b\n1,2\n")]),
                (1, "line 3", ["--trace", self.file("b.csv", TRACE.splitlines()[0] + "\n1,2,3\n1,x,3\n")]),
                (1, "line 2", ["--trace", self.file("c.csv", TRACE.splitlines()[0] + "\n2023-13-01 00:00:00,2,3\n")]),
                (1, "holds no", ["--trace", self.file("d.csv", TRACE.splitlines()[0] + "\n")])):
            self.refused(status, ["bench", "throughput", "-m", LLAMA, *arguments], says=says)
        for time in ("2023-11-16 24:00:00", "2023-11-16 99:99:99", "2023-11-16 -1:00:00", "2023-11-16 18:60:00",
                     "2023-11-16 18:15:60", "2023-11-16 18:15:-1", "2023-11-16 18:15:4", "2023-11-16 18:15:1e1",
                     "2023-11-16 18:15:46.", "2023-11-16 18:15:46+", "2023-11-16 18:15:46+1:00", "2023-11-16 18:15:46+24:00",
                     "2023-11-16 18:15:46+01:60", "2023-11-16 18:15:46Z+01:00", "2023-11-16 18:15:46 UTC", "2023-02-29 00:00:00",
                     "2023-11-1618:15:46", "-023-11-16 18:15:46", "inf", ""):
            with self.subTest(time=time):
                trace = self.file("e.csv", f"{TRACE.splitlines()[0]}\n{time},2,3\n")
                self.refused(1, ["bench", "throughput", "-m", LLAMA, "--trace", trace], says="line 2")
        self.refused(2, ["bench", "throughput"], says="-m")


@contextlib.contextmanager
def other_server(models=None, events=()):
    """A server of someone else's: `models` on GET, `events` and [DONE] on POST. Yields its URL and the bodies it was sent."""
    bodies = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer("application/json", json.dumps({"data": [{"id": "m"}]} if models is None else models))

        def do_POST(self):
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer("text/event-stream", "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n")

        def answer(self, kind, text):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", bodies
        finally:
            server.shutdown()


PIECE = {"choices": [{"text": "a"}]}


class Serve(ProgramTest):
    def test_against_our_server(self):
        keys = self.file("keys", "sk-x\n")
        with live.Server("--api-key-file", keys, model=live.model_with_chat(self.tmp)) as server:
            lines = self.ok("bench", "serve", "--url", server.url + "/v1", "--api-key-file", keys, "--num-prompts", 10,
                            "--input-len", 12, "--output-len", 5, "--ignore-eos", "--request-rate", "inf,50", "--samples",
                            "--json")
            runs = [json.loads(line) for line in lines.splitlines()]
            self.assertEqual([run["request_rate"] for run in runs], ["inf", "50"])
            for run in runs:
                self.assertEqual((run["completed"], run["failed"]), (10, 0), run)
                self.assertEqual((run["total_input_tokens"], run["total_output_tokens"]), (120, 50))
                for name in SERIES:
                    self.assertGreater(run[name], 0, name)
                self.assertEqual(run["samples"]["output_tokens"], [5] * 10)
                self.assertAlmostEqual(max(run["samples"]["ttft_ms"]), run["p99_ttft_ms"], delta=0.1 * run["p99_ttft_ms"])
            text = self.ok("bench", "serve", "--url", server.url, "--api-key-file", keys, "--num-prompts", 4,
                           "--input-len", 12, "--output-len", 5, "--endpoint", "chat", "--max-concurrency", 2)
            self.assertIn(b"4 requests answered, 0 failed", text)
            self.refused(1, ["bench", "serve", "--url", server.url], says="status 401")

    def test_against_random_weights(self):
        with live.Server("--config", LLAMA / "config.json", "--sparsity", 0, model=None) as server:
            run = self.json("bench", "serve", "--url", server.url, "--num-prompts", 3, "--input-len", 5, "--output-len", 4,
                            "--ignore-eos")
            self.assertEqual((run["completed"], run["failed"]), (3, 0), run)
            self.assertEqual(server.stop(), 0)
        self.refused(2, ["serve", "-m", LLAMA, "--config", LLAMA / "config.json"])

    def test_requests_longer_than_the_model(self):
        """What is said of them is what the server got, for as long as it says what it takes."""
        trace = self.file("trace.csv", TRACE)
        for most, lengths, cut in ((512, [(20, 5), (30, 8), (508, 4)], 1), (10, [(5, 5), (2, 8), (6, 4)], 3),
                                   (904, [(20, 5), (30, 8), (900, 4)], 0), (None, [(20, 5), (30, 8), (900, 4)], 0)):
            with other_server({"data": [{"id": "m", "max_model_len": most}]}, [PIECE]) as (url, bodies):
                arguments = ("bench", "serve", "--url", url, "--trace", trace)
                self.assertEqual(self.json(*arguments)["requests_cut_to_model"], cut)
                self.assertEqual(sorted((len(body["prompt"]), body["max_tokens"]) for body in bodies), sorted(lengths))
                text = self.ok(*arguments).decode()
                line = f"requests longer than the model takes, cut to it: {cut}\n"
                self.assertEqual(line in text, cut > 0, text)

    def test_answers_of_another_kind(self):
        """One sentence with the URL and the field."""
        for models, says in (([], "object"), ({}, '"data" is missing'), ({"data": 5}, '"data" is 5'), ({"data": []}, '"data" is empty'),
                             ({"data": ["m"]}, '"data"[0]'), ({"data": [{"id": 7}]}, '"id" is 7'), ({"data": [{}]}, '"id" is missing')):
            with self.subTest(models=models), other_server(models) as (url, _):
                self.refused(1, ["bench", "serve", "--url", url], says=(url, says))
        for event, says in (({"choices": 5}, '"choices" is 5'), ({"choices": {"a": 1}}, '"choices" is an object'),
                            ({"usage": {"prompt_tokens": "many"}}, '"prompt_tokens" is "many"'), ({"usage": 5}, '"usage"'),
                            ({"choices": [{"delta": {"content": 5}}]}, '"content" is 5')):
            with self.subTest(event=event), other_server(events=[event]) as (url, _):
                self.refused(1, ["bench", "serve", "--url", url, "--num-prompts", 2], says=(url, says))

    def test_a_chat_that_opens_with_null(self):
        """As some do in the event that names the role, which is no text."""
        opening = {"choices": [{"delta": {"role": "assistant", "content": None}, "finish_reason": None}], "usage": None}
        piece = {"choices": [{"delta": {"content": "a"}, "finish_reason": None}]}
        with other_server(events=[opening, piece, piece]) as (url, _):
            run = self.json("bench", "serve", "--url", url, "--num-prompts", 3, "--endpoint", "chat")
            self.assertEqual((run["completed"], run["failed"], run["total_output_tokens"]), (3, 0, 6))

    def test_arrivals_in_thousands_of_years(self):
        """More nanoseconds than 63 bits count: the second request waits, and the program can be ended."""
        far = self.file("far.csv", TRACE.splitlines()[0] + "\n0,2,3\n1e300,2,3\n")
        for arguments in (("--request-rate", "1e-11"), ("--request-rate", "1e-300"),
                          ("--request-rate", "trace", "--trace", far)):
            with self.subTest(arguments=arguments), other_server(events=[PIECE]) as (url, bodies), subprocess.Popen(
                    command("bench", "serve", "--url", url, "--num-prompts", 2, *arguments), stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE) as process:
                end = time.monotonic() + 20 * live.SLOWNESS
                while not bodies and time.monotonic() < end:
                    time.sleep(0.05)
                time.sleep(0.5 * live.SLOWNESS)
                self.assertEqual(len(bodies), 1)
                process.send_signal(signal.SIGINT)
                self.assertEqual(process.wait(20 * live.SLOWNESS), 130)
                self.assertEqual(process.stdout.read(), b"")

    def test_bad_urls(self):
        for status, url in ((2, "https://a"), (2, "ftp://a"), (2, "http://"), (2, "http://a:x"), (1, "http://127.0.0.1:1"),
                            (1, "http://nowhere.invalid")):
            self.refused(status, ["bench", "serve", "--url", url])


class Chat(ProgramTest):
    def test_turns_from_a_pipe(self):
        model = live.model_with_chat(self.tmp)
        turns = 'Hello\\\nthere\n\n"""\ntwo\nlines\n"""\n/clear\nagain'
        lines = self.ok("chat", "-m", model, "--temp", 0, "-n", 8, "--json", "--system", "Be kind.",
                        stdin=turns.encode()).splitlines()
        answers = [json.loads(line) for line in lines]
        self.assertEqual(len(answers), 3)
        prompt = "system: Be kind.\nuser: Hello\nthere\nassistant:"
        said = self.json("generate", "-m", LLAMA, "-p", prompt, "-n", 8, "--temp", 0)["outputs"][0]
        self.assertEqual(answers[0]["content"], said["text"])
        self.assertEqual(answers[0]["usage"]["prompt_tokens"], len(said["prompt_ids"]))
        self.assertGreater(answers[1]["usage"]["prompt_tokens"], answers[2]["usage"]["prompt_tokens"])

    def test_the_plain_template(self):
        plain = ROOT / "configs" / "chat_templates" / "plain.jinja"
        lines = self.ok("chat", "-m", LLAMA, "--chat-template", plain, "-n", 5, "--temp", 0, "--json", "--system", "Be kind.",
                        stdin=b"Hello\nAnd?\n").splitlines()
        prompt = "Be kind.\n\nUser: Hello\nAssistant:"
        for answer in map(json.loads, lines):
            said = self.json("generate", "-m", LLAMA, "-p", prompt, "-n", 5, "--temp", 0)["outputs"][0]
            self.assertEqual(answer["content"], said["text"])
            self.assertEqual(answer["usage"]["prompt_tokens"], len(said["prompt_ids"]))
            prompt += f" {said['text'].strip()}\nUser: And?\nAssistant:"
        self.assertEqual(len(lines), 2)

    def test_refusals(self):
        self.refused(1, ["chat", "-m", LLAMA], says="no chat template")
        model = live.model_with_chat(self.tmp)
        self.refused(1, ["chat", "-m", model], says="the model takes 512", stdin=b"word " * 600 + b"\n")

    def test_logprobs(self):
        model = live.model_with_chat(self.tmp)
        self.refused(2, ["chat", "-m", model, "--logprobs", 2], says="--json")
        answer = self.json("chat", "-m", model, "-n", 5, "--ignore-eos", "--json", "--logprobs", 2, stdin=b"Hello\n/exit\r\n")
        self.assertEqual([len(token["top"]) for token in answer["logprobs"]], [2] * 5)

    def test_sigint_ends_it_without_a_terminal(self):
        model = live.model_with_chat(self.tmp)
        for turn in (b"", b"Tell me a story\n"):  # idle, and in an answer
            with subprocess.Popen(command("chat", "-m", model, "-n", 480, "--ignore-eos", "-t", 1), stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
                process.stdin.write(turn)
                process.stdin.flush()
                if turn:
                    self.assertTrue(process.stdout.read(1))
                else:
                    time.sleep(1)
                process.send_signal(signal.SIGINT)
                self.assertEqual(process.wait(20 * live.SLOWNESS), 130)
                self.assertEqual(process.stderr.read(), b"")

    def test_ctrl_c_stops_the_answer_and_not_the_program(self):
        model = live.model_with_chat(self.tmp)
        master, slave = self.terminal()
        process = subprocess.Popen(command("chat", "-m", model, "-n", 480, "--ignore-eos", "-t", 1), stdin=slave, stdout=slave,
                                   stderr=slave, start_new_session=True)
        os.close(slave)
        seen = b""

        def after(text, typed):
            return text.partition(typed + b"\r\n")[2]

        def wait_for(enough, seconds=30):
            nonlocal seen
            end = time.monotonic() + seconds * live.SLOWNESS
            while not enough(seen):
                self.assertLess(time.monotonic(), end, seen)
                if select.select([master], [], [], 0.2)[0]:
                    seen += os.read(master, 65536)

        try:
            wait_for(lambda text: text.endswith(b"> "))
            os.write(master, b"Tell me a story\n")
            wait_for(lambda text: len(after(text, b"story")) > 40)
            process.send_signal(signal.SIGINT)
            wait_for(lambda text: after(text, b"story").endswith(b"\n> "))
            self.assertIsNone(process.poll())
            os.write(master, b"And another\n")
            wait_for(lambda text: len(after(text, b"another")) > 40)
            process.send_signal(signal.SIGINT)
            wait_for(lambda text: after(text, b"another").endswith(b"\n> "))
            process.send_signal(signal.SIGINT)
            wait_for(lambda text: b"leaves)" in after(text, b"another"))
            os.write(master, b"\x04")
            self.assertEqual(process.wait(20 * live.SLOWNESS), 0)
        finally:
            process.kill()
            process.wait()
            os.close(master)


if __name__ == "__main__":
    unittest.main(verbosity=1)
