"""The endpoints as clients use them: whole answers and streams, chat, names, keys, page."""

import json
import tempfile
import unittest
import urllib.parse

import live
from live import Server, events_of, http_post
from program import LLAMA, ProgramTest

PROMPT = "The old man looked at her and said,"


class Api(ProgramTest):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.server = Server("--deterministic", "--served-model-name", "demo", "--served-model-name", "alias",
                            model=live.model_with_chat(cls.folder.name))

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0
        cls.folder.cleanup()

    def post(self, path, body):
        return self.server.post(path, body)

    def stream(self, path, body):
        status, headers, text = self.server.request("POST", path, {"stream": True, **body})
        self.assertEqual(status, 200, text)
        self.assertTrue(headers["Content-Type"].startswith("text/event-stream"))
        events = events_of(text)
        self.assertEqual(events[-1], "[DONE]")
        return events[:-1]

    def test_health_models_and_metrics(self):
        self.assertEqual(self.server.get("/health"), (200, b'{"status":"ok"}'))
        models = json.loads(self.server.get("/v1/models")[1])
        self.assertEqual([m["id"] for m in models["data"]], ["demo", "alias"])
        self.assertEqual(models["data"][0]["max_model_len"], 512)
        self.assertEqual(json.loads(self.server.get("/v1/models/alias")[1])["id"], "alias")
        self.assertEqual(self.server.get("/v1/models/other")[0], 404)
        self.assertEqual(self.server.request("HEAD", "/health")[::2], (200, b""))
        metrics = self.server.metrics()
        for name in ("spinfer_requests_running", "spinfer_requests_waiting", "spinfer_requests_preempted_total",
                     'spinfer_kv_blocks{state="free"}', 'spinfer_kv_blocks{state="used"}',
                     'spinfer_kv_blocks{state="cached"}', "spinfer_prefix_hit_tokens_total",
                     "spinfer_generated_tokens_total", 'spinfer_weights_bytes{form="dense"}',
                     'spinfer_weights_bytes{form="packed"}', "spinfer_ttft_seconds_count", "spinfer_tpot_seconds_count",
                     "spinfer_e2e_seconds_count"):
            self.assertIn(name, metrics)
        self.assertLess(metrics['spinfer_weights_bytes{form="packed"}'], metrics['spinfer_weights_bytes{form="dense"}'])

    def test_completion_is_what_generate_says(self):
        said = self.json("generate", "-m", LLAMA, "-p", PROMPT, "-n", 24, "--temp", 0, "--deterministic", "-t", 2)
        answer = self.server.complete(PROMPT, max_tokens=24, temperature=0)
        choice = answer["choices"][0]
        self.assertEqual(choice["text"], said["outputs"][0]["text"])
        self.assertEqual(choice["finish_reason"], "length")
        self.assertEqual(answer["object"], "text_completion")
        self.assertEqual(answer["model"], "demo")
        usage = answer["usage"]
        self.assertEqual(usage["completion_tokens"], 24)
        self.assertEqual(usage["prompt_tokens"], len(said["outputs"][0]["prompt_ids"]))
        self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + 24)
        ids = self.server.complete(said["outputs"][0]["prompt_ids"], max_tokens=24, temperature=0)
        self.assertEqual(ids["choices"][0]["text"], choice["text"])

    def test_stream_is_the_whole_answer_in_pieces(self):
        for n in (2, 32):  # the latter's log-probabilities are put into words beside the I/O thread
            with self.subTest(n=n):
                self.check_stream(n)

    def check_stream(self, n):
        fields = {"prompt": PROMPT, "max_tokens": 30, "seed": 5, "logprobs": 2, "n": n}
        whole = self.server.complete(**fields)
        events = self.stream("/v1/completions", {**fields, "stream_options": {"include_usage": True}})
        self.assertEqual(events[-1]["choices"], [])
        self.assertEqual({**events[-1]["usage"], "prompt_tokens_details": None},
                         {**whole["usage"], "prompt_tokens_details": None})
        self.assertEqual(len({event["id"] for event in events}), 1)
        for index in range(n):
            pieces = [c for event in events for c in event["choices"] if c["index"] == index]
            choice = whole["choices"][index]
            self.assertEqual("".join(piece["text"] for piece in pieces), choice["text"])
            self.assertEqual([p["finish_reason"] for p in pieces if p["finish_reason"]], [choice["finish_reason"]])
            for key in ("tokens", "token_logprobs", "text_offset"):
                streamed = [value for piece in pieces if piece["logprobs"] for value in piece["logprobs"][key]]
                self.assertEqual(streamed, choice["logprobs"][key], key)
        self.assertNotEqual(whole["choices"][0]["text"], whole["choices"][1]["text"])

    def test_text_offsets_of_text_that_was_held_back(self):
        fields = {"prompt": PROMPT, "max_tokens": 30, "temperature": 0, "logprobs": 0}
        whole = self.server.complete(**fields)["choices"][0]
        fields["stop"] = whole["text"][5] + "\x01"  # held back whenever that character comes
        pieces = [event["choices"][0] for event in self.stream("/v1/completions", fields)]
        self.assertEqual("".join(piece["text"] for piece in pieces), whole["text"])
        offsets = [offset for piece in pieces if piece["logprobs"] for offset in piece["logprobs"]["text_offset"]]
        self.assertEqual(offsets, whole["logprobs"]["text_offset"])

    def test_seed_makes_answers_repeat(self):
        texts = [self.server.complete(PROMPT, max_tokens=20, seed=seed)["choices"][0]["text"] for seed in (1, 1, 2)]
        self.assertEqual(texts[0], texts[1])
        self.assertNotEqual(texts[0], texts[2])

    def test_stop_strings(self):
        text = self.server.complete(PROMPT, max_tokens=60, temperature=0)["choices"][0]["text"]
        stop = text[20:26]
        cut = self.server.complete(PROMPT, max_tokens=60, temperature=0, stop=["never this", stop])["choices"][0]
        self.assertEqual(cut["text"], text[:text.index(stop)])
        self.assertEqual(cut["finish_reason"], "stop")
        events = self.stream("/v1/completions", {"prompt": PROMPT, "max_tokens": 60, "temperature": 0, "stop": stop})
        self.assertEqual("".join(e["choices"][0]["text"] for e in events), cut["text"])

    def test_many_prompts(self):
        alone = [self.server.complete(p, max_tokens=8, temperature=0)["choices"][0]["text"] for p in ("One", "Two")]
        answer = self.server.complete(["One", "Two"], max_tokens=8, temperature=0, n=2)
        self.assertEqual([c["text"] for c in answer["choices"]], [alone[0], alone[0], alone[1], alone[1]])
        self.assertEqual([c["index"] for c in answer["choices"]], [0, 1, 2, 3])

    def test_prefix_cache_shows_in_usage(self):
        prompt = "A long prompt that nobody has used before in this run. " * 4
        first = self.server.complete(prompt, max_tokens=2)["usage"]
        second = self.server.complete(prompt, max_tokens=2)["usage"]
        self.assertEqual(first["prompt_tokens_details"]["cached_tokens"], 0)
        self.assertGreaterEqual(second["prompt_tokens_details"]["cached_tokens"], 32)
        for n in (1, 4):
            usage = self.server.complete([prompt, prompt], max_tokens=2, n=n)["usage"]
            self.assertEqual(usage["prompt_tokens"], 2 * first["prompt_tokens"])
            self.assertEqual(usage["prompt_tokens_details"], {
                "cached_tokens": 2 * second["prompt_tokens_details"]["cached_tokens"]})

    def test_chat(self):
        messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": " Hello there "}]
        prompt = "<s>system: Be kind.\nuser: Hello there\nassistant:"
        status, answer = self.post("/v1/chat/completions", {"messages": messages, "max_tokens": 12, "temperature": 0})
        self.assertEqual(status, 200, answer)
        self.assertEqual(answer["object"], "chat.completion")
        message = answer["choices"][0]["message"]
        self.assertEqual(message["role"], "assistant")
        # The template's "<s>" is the BOS token, not text.
        completion = self.server.complete(prompt[len("<s>"):], max_tokens=12, temperature=0)
        self.assertEqual(message["content"], completion["choices"][0]["text"])
        self.assertEqual(answer["usage"]["prompt_tokens"], completion["usage"]["prompt_tokens"])
        events = self.stream("/v1/chat/completions", {"messages": messages, "max_tokens": 12, "temperature": 0})
        self.assertEqual(events[0]["choices"][0]["delta"], {"role": "assistant", "content": ""})
        self.assertEqual("".join(e["choices"][0]["delta"].get("content", "") for e in events), message["content"])
        self.assertEqual(events[-1]["choices"][0]["finish_reason"], "length")

    def test_chat_logprobs(self):
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "logprobs": True, "top_logprobs": 3}
        content = self.post("/v1/chat/completions", body)[1]["choices"][0]["logprobs"]["content"]
        self.assertEqual(len(content), 4)
        for token in content:
            self.assertEqual(bytes(token["bytes"]).decode(), token["token"])
            self.assertEqual(len(token["top_logprobs"]), 3)
            self.assertLessEqual(token["logprob"], token["top_logprobs"][0]["logprob"])

    def test_the_sampled_token_is_among_the_top_ones(self):
        answer = self.server.complete(PROMPT, max_tokens=30, temperature=5, seed=1, logprobs=1)
        logprobs = answer["choices"][0]["logprobs"]
        sizes = set()
        for token, logprob, top in zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"]):
            self.assertEqual(top[token], logprob)
            sizes.add(len(top))
        self.assertEqual(max(sizes), 2)  # one more than asked for where another token was sampled
        alone = self.server.complete(PROMPT, max_tokens=3, logprobs=0)["choices"][0]["logprobs"]
        self.assertEqual([list(top) for top in alone["top_logprobs"]], [[token] for token in alone["tokens"]])

    def test_usage_counts_the_end_of_text(self):
        end = json.loads((LLAMA / "config.json").read_text())["eos_token_id"]
        answer = self.server.complete(PROMPT, max_tokens=9, logit_bias={str(end): 100})
        self.assertEqual(answer["choices"][0]["finish_reason"], "stop")
        self.assertEqual(answer["choices"][0]["text"], "")
        self.assertEqual(answer["usage"]["completion_tokens"], 1)

    def test_chat_fills_the_model_by_default(self):
        body = {"messages": [{"role": "user", "content": "Go on."}], "ignore_eos": True}
        answer = self.post("/v1/chat/completions", body)[1]
        self.assertEqual(answer["usage"]["total_tokens"], 512)

    def test_tokenize_and_back(self):
        status, answer = self.post("/tokenize", {"prompt": "Grüße, 世界"})
        ids = self.ok("tokenize", "-m", LLAMA, stdin="Grüße, 世界".encode()).split()
        self.assertEqual((status, answer["tokens"], answer["count"]), (200, [int(i) for i in ids], len(ids)))
        self.assertEqual(self.post("/detokenize", {"tokens": answer["tokens"]}), (200, {"prompt": "Grüße, 世界"}))
        without = self.post("/tokenize", {"prompt": "a", "add_special_tokens": False})[1]
        self.assertEqual(without["count"] + 1, self.post("/tokenize", {"prompt": "a"})[1]["count"])
        self.assertEqual(self.post("/detokenize", {"tokens": [99999]})[0], 400)

    def test_names(self):
        self.assertEqual(self.server.complete("a", model="alias", max_tokens=1)["model"], "alias")
        status, answer = self.post("/v1/completions", {"prompt": "a", "model": "gpt-4"})
        self.assertEqual((status, answer["error"]["code"], answer["error"]["param"]), (404, "model_not_found", "model"))
        status, answer = self.post("/v1/completions", {"prompt": "a", "model": "a\0b"})
        self.assertEqual(status, 404)
        self.assertIn("'a\0b' is not served here", answer["error"]["message"])

    def test_too_long(self):
        for body in ({"prompt": "a", "max_tokens": 512}, {"prompt": "word " * 600}, {"prompt": [5] * 600}):
            status, answer = self.post("/v1/completions", body)
            self.assertEqual((status, answer["error"]["code"]), (400, "context_length_exceeded"), answer)
            self.assertIn("512", answer["error"]["message"])

    def test_page(self):
        status, headers, text = self.server.request("GET", "/")
        self.assertEqual(status, 200)
        self.assertIn("text/html", headers["Content-Type"])
        self.assertIn(b"<title>spinfer</title>", text)
        for outside in (b"http://", b"https://", b"src=", b"@import", b"url("):
            self.assertNotIn(outside, text, "the page must need nothing from elsewhere")

    def test_connections_are_reused_and_pipelined(self):
        one = http_post("/v1/completions", {"prompt": "a", "max_tokens": 3, "temperature": 0})
        last = http_post("/tokenize", {"prompt": "end"}, "Connection: close\r\n")
        data = self.server.raw(one * 5 + b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" * 20 + last)
        self.assertEqual(data.count(b"HTTP/1.1 200 OK"), 26)
        self.assertEqual(data.count(b'"finish_reason":"length"'), 5)
        self.assertTrue(data.endswith(b"}") and b'"count"' in data.rsplit(b"\r\n\r\n", 1)[1])

    def test_half_closed_connections_are_answered(self):
        health = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
        for _ in range(10):  # the end may be seen with the requests, or later
            self.assertEqual(self.server.raw(health * 5, finish=True).count(b"HTTP/1.1 200 OK"), 5)
            data = self.server.raw(health + http_post("/tokenize", {"prompt": "a"}) * 2 + health, finish=True)
            self.assertEqual((data.count(b"HTTP/1.1 200 OK"), data.count(b'"count"')), (4, 2))

    def test_a_half_closed_connection_gets_no_generation(self):
        for before in (b"", b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"):
            one = http_post("/v1/completions", {"prompt": "a", "max_tokens": 400, "ignore_eos": True})
            data = self.server.raw(before + one + b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", finish=True)
            self.assertEqual(data.count(b"HTTP/1.1 200 OK"), len(before) > 0)
            self.assertEqual(data.count(b"HTTP/1.1 400 "), 1)
            self.assertIn(b"keep it open", data)
        self.server.wait_idle()

    def test_absolute_form(self):
        here = f"127.0.0.1:{self.server.port}"
        for target, host, status in ((f"http://{here}/health?a=b", "a", 200), (f"HTTP://{here}", here, 200),
                                     ("http://Models.example/health", "models.EXAMPLE", 200),
                                     (f"http://{here}?a", "a", 200), ("http://other/health", here, 404)):
            data = self.server.raw(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            self.assertIn(f"HTTP/1.1 {status} ".encode(), data, target)

    def test_line_breaks_before_a_request(self):
        post = http_post("/tokenize", {"prompt": "a"}) + b"\r\n"  # a line break too many after the body
        data = self.server.raw(b"\r\n" + post * 3 + b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        self.assertEqual(data.count(b"HTTP/1.1 200 OK"), 4)

    def test_methods_allowed(self):
        for method, path, allowed in (("POST", "/health", "GET, HEAD"), ("DELETE", "/v1/models/demo", "GET, HEAD"),
                                      ("GET", "/v1/completions", "POST"), ("PUT", "/tokenize", "POST")):
            status, headers, _ = self.server.request(method, path)
            self.assertEqual((status, headers["Allow"]), (405, allowed))

    def test_http_1_0(self):
        body = json.dumps({"prompt": "a", "max_tokens": 4, "stream": True}).encode()
        data = self.server.raw(b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        head, _, events = data.partition(b"\r\n\r\n")
        self.assertIn(b"Connection: close", head)
        self.assertNotIn(b"chunked", head)
        self.assertEqual(events_of(events)[-1], "[DONE]")
        body = b'{"prompt": "a"}'
        data = self.server.raw(b"POST /tokenize HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" %
                               len(body) + body)
        self.assertTrue(data.startswith(b"HTTP/1.1 200 OK"), "1.0 knows no 100 Continue")

    def test_chunked_bodies_and_expect(self):
        data = self.server.raw(b"POST /tokenize HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
                               b"Transfer-Encoding: chunked\r\n\r\n6\r\n{\"prom\r\nB\r\npt\": \"abc\"}\r\n0\r\n\r\n")
        self.assertIn(b'"count"', data)
        with self.server.connect() as connection:
            body = b'{"prompt": "abc"}'
            connection.sendall(b"POST /tokenize HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\n"
                               b"Content-Length: %d\r\n\r\n" % len(body))
            self.assertEqual(connection.recv(100), b"HTTP/1.1 100 Continue\r\n\r\n")
            connection.sendall(body)
            self.assertIn(b"200 OK", live.read_all(connection))


class Names(ProgramTest):
    def test_any_name_can_be_asked_for(self):
        names = ["org/my-model", "a b", "50%", "%41", "Modèle"]
        with Server(*(argument for name in names for argument in ("--served-model-name", name))) as server:
            asked = [(urllib.parse.quote(name, safe=safe), name) for name in names for safe in ("", "/")]
            for path, name in [*asked, ("org/my-model", names[0]), ("50%", names[2]), ("%25%341", names[3])]:
                status, text = server.get("/v1/models/" + path)
                self.assertEqual((status, json.loads(text).get("id")), (200, name), path)
            for path in ("", "/", "org", "org/", "a+b"):
                self.assertEqual(server.get("/v1/models/" + path)[0], 404, path)


class Keys(ProgramTest):
    def test_all_but_health_and_metrics_need_one(self):
        keys = self.file("keys", "# two of them\nsk-one\nsk-two\n")
        with Server("--api-key-file", keys) as server:
            for method, path in (("GET", "/"), ("GET", "/v1/models"), ("POST", "/v1/completions"), ("POST", "/tokenize"),
                                 ("POST", "/v1/chat/completions"), ("POST", "/detokenize"), ("GET", "/nothing")):
                for headers in ({}, {"Authorization": "Bearer sk-three"}, {"Authorization": "sk-one"}):
                    status, _, text = server.request(method, path, "{}" if method == "POST" else None, headers)
                    self.assertEqual(status, 401, path)
                    self.assertEqual(json.loads(text)["error"]["type"], "authentication_error")
            for path in ("/health", "/metrics"):
                self.assertEqual(server.get(path)[0], 200)
            for key in ("Bearer sk-one", "Bearer sk-two", "Basic dTpzay10d28="):
                self.assertEqual(server.get("/v1/models", headers={"Authorization": key})[0], 200, key)
                self.assertEqual(server.get("/", headers={"Authorization": key})[0], 200, key)

    def test_bodies_of_strangers_are_not_waited_for(self):
        keys = self.file("keys", "sk-one\n")
        head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n"
        with Server("--api-key-file", keys) as server:
            answer = server.raw(head + b"\r\n{")  # the rest never comes
            self.assertTrue(answer.startswith(b"HTTP/1.1 401 "), answer)
            self.assertIn(b"Connection: close", answer)
            answer = server.raw(head + b"\r\n" + b" " * 1_000_000)
            self.assertTrue(answer.startswith(b"HTTP/1.1 401 "), answer)
            answer = server.raw(head + b"Expect: 100-continue\r\n\r\n")
            self.assertTrue(answer.startswith(b"HTTP/1.1 401 "), answer)
            with server.connect() as friend:
                friend.sendall(head + b"Authorization: Bearer sk-one\r\nExpect: 100-continue\r\n\r\n")
                self.assertTrue(friend.recv(100).startswith(b"HTTP/1.1 100 "))

    def test_bad_starts_are_refused(self):
        for status, says, arguments in (
                (1, "holds no key", ["-m", LLAMA, "--port", 0, "--api-key-file", self.file("empty", "")]),
                (1, "/nowhere", ["-m", LLAMA, "--port", 0, "--api-key-file", "/nowhere"]),
                (1, "cannot listen", ["-m", LLAMA, "--host", "192.0.2.1", "--port", 0]),
                (2, "--port", ["-m", LLAMA, "--port", 65536]),
                (2, "--max-waiting", ["-m", LLAMA, "--max-waiting", -1]),
                (1, "/nowhere", ["-m", LLAMA, "--port", 0, "--chat-template", "/nowhere"])):
            self.refused(status, ["serve", *arguments], says=says)
        with Server() as server:
            self.refused(1, ["serve", "-m", LLAMA, "--port", server.port], says=[server.port, "Address already in use"])
        done = self.run_program("serve", "-m", "/nowhere", "--port", 0)
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"/nowhere", done.stderr)

    def test_a_template_from_a_file_and_one_that_is_not_supported(self):
        chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        with Server("--chat-template", self.file("t.jinja", "{{ messages[0].content }}")) as server:
            self.assertEqual(server.post("/v1/chat/completions", chat)[0], 200)
        with Server() as server:
            status, answer = server.post("/v1/chat/completions", chat)
            self.assertEqual((status, answer["error"]["code"]), (400, "no_chat_template"))
        for template, says in (("{% macro f() %}{% endmacro %}", "'macro' is not supported"),
                               ("{{ raise_exception('only poems') }}", "only poems")):
            with Server("--chat-template", self.file("u.jinja", template)) as server:
                status, answer = server.post("/v1/chat/completions", chat)
                self.assertEqual(status, 400)
                self.assertIn(says, answer["error"]["message"])
                self.assertEqual(server.post("/v1/completions", {"prompt": "a", "max_tokens": 1})[0], 200)


if __name__ == "__main__":
    unittest.main(verbosity=1)
