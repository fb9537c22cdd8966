"""Malformed and hostile requests over the wire: each gets a 4xx with OpenAI's error object (or, where nothing can be
said, a closed connection), quickly, and the server goes on. The bodies' own table is in openai_request_test.cpp."""

import json
import socket
import time
import unittest

import live
from live import http_post
from program import ProgramTest

GET = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n"
COMPLETION = "/v1/completions"
# (status, bytes); status None: the connection may just end.
RAW = [
    (400, b"\r\n\r\n\r\n\r\nnonsense\r\n\r\n"),
    (400, b"GET\r\n\r\n"),
    (400, b"GET /\r\n\r\n"),
    (400, b"GET / HTTP/9.9\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\n: a\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: a\r\nA B: c\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\n\r\n"),
    (400, b"GET /health HTTP/1.1\r\nHo\x00st: a\r\n\r\n"),
    (400, b"GET /he alth HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, b"G\x01T / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200),  # TLS
    (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    (400, b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    (431, b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    (431, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20000 + b"\r\n\r\n"),
    (431, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 5000 + b"\r\n"),
    (431, b"a" * 100000),
    (413, POST + b"Content-Length: 4194305\r\n\r\n"),
    (413, POST + b"Content-Length: 99999999999\r\n\r\n"),
    (413, POST + b"Transfer-Encoding: chunked\r\n\r\n500000\r\n" + b"a" * 0x500000 + b"\r\n0\r\n\r\n"),
    (400, POST + b"Content-Length: -1\r\n\r\n"),
    (400, POST + b"Content-Length: 5x\r\n\r\naaaaa"),
    (400, POST + b"Content-Length: 99999999999999999999999\r\n\r\n"),
    (400, POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\naaaaaa"),
    (400, POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    (400, POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    (400, POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\naaaaaXX\r\n0\r\n\r\n"),
    (400, POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n"),
    (400, POST + b"Host: b\r\nContent-Length: 0\r\n\r\n"),
    (400, POST + b"\r\n"),
    (400, b"\r\n" * 100 + GET),
    (404, b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n"),
    (404, b"GET /../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n"),
    (404, b"GET /v1 HTTP/1.1\r\nHost: a\r\n\r\n"),
    (404, b"GET //health HTTP/1.1\r\nHost: a\r\n\r\n"),
    (404, b"GET http://other/health HTTP/1.1\r\nHost: a\r\n\r\n"),
    (404, b"GET http:///health HTTP/1.1\r\nHost:\r\n\r\n"),
    (404, b"GET http://a@b/health HTTP/1.1\r\nHost: a\r\n\r\n"),
    (404, b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
    (404, b"CONNECT other:443 HTTP/1.1\r\nHost: a\r\n\r\n"),
    (405, b"GET /v1/completions HTTP/1.1\r\nHost: a\r\n\r\n"),
    (405, b"DELETE /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"),
    (405, b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"),
    (405, b"BREW /health HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, http_post(COMPLETION, b"")),
    (400, http_post(COMPLETION, b"\xff\xfe")),
    (400, http_post(COMPLETION, b"\x00" * 100)),
    (400, http_post(COMPLETION, b'{"prompt": "\xc3\x28"}')),
    (400, http_post(COMPLETION, b'{"prompt": "a\x01"}')),
    (400, http_post(COMPLETION, b"[" * 1000000)),
    (400, http_post(COMPLETION, b'{"a":' * 500000)),
    (400, http_post(COMPLETION, b'{"prompt": [' + b"1," * 1500000 + b"1]}")),
    (400, http_post(COMPLETION, b'{"prompt": "a", "max_tokens": ' + b"9" * 100000 + b"}")),
    (400, http_post(COMPLETION, b'{"prompt": "a", "temperature": NaN}')),
    (400, http_post(COMPLETION, b'{"prompt": "a", "temperature": Infinity}')),
    (400, http_post(COMPLETION, b'{"prompt": "a", "temperature": 1e400}')),
    (400, http_post(COMPLETION, b'{"prompt": [2048]}')),
    (400, http_post(COMPLETION, b'{"prompt": [0, 5, 2147483647]}')),
    (400, http_post(COMPLETION, json.dumps({"prompt": "word " * 200000}).encode())),
    (400, http_post(COMPLETION, json.dumps({"prompt": "a", "stop": "x" * 5000}).encode())),
    (400, http_post("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "a"}]}')),
    (400, http_post("/tokenize", b"{}")),
    (400, http_post("/tokenize", b'{"prompt": 5}')),
    (400, http_post("/detokenize", b'{"tokens": "a"}')),
    (400, http_post("/detokenize", b'{"tokens": [-5]}')),
    (400, http_post("/detokenize", b'{"tokens": [1e3]}')),
    (404, http_post(COMPLETION, b'{"prompt": "a", "model": "../../etc"}')),
    (404, b"GET /v1/models/%2e%2e HTTP/1.1\r\nHost: a\r\n\r\n"),
    (404, b"GET /v1/models/%00%ff%c3%28%2 HTTP/1.1\r\nHost: a\r\n\r\n"),
    (404, b"GET /v1/models/" + b"%41" * 1000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    (404, b"GET /v1/models/ HTTP/1.1\r\nHost: a\r\n\r\n"),
]
# (status, headers) of requests whose body another program could see end elsewhere.
FRAMING = [
    (400, b"Transfer-Encoding: gzip"),
    (400, b"Transfer-Encoding: chunked, gzip"),
    (501, b"Transfer-Encoding: gzip, chunked"),
    (501, b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked"),
    (400, b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip"),
    (400, b"Transfer-Encoding: chunked, chunked"),
    (400, b"Transfer-Encoding: identity"),
    (400, b"Transfer-Encoding: xchunked"),
    (400, b"Transfer-Encoding: \"chunked\""),
    (400, b"Transfer-Encoding:"),
    (400, b"Transfer-Encoding: \x0bchunked"),
    (400, b"Transfer-Encoding : chunked"),
    (400, b"Transfer-Encoding: gzip\r\nContent-Length: 5"),
    (400, b"Content-Length: 5\r\nTransfer-Encoding: gzip"),
    (400, b"Transfer-Encoding: chunked\r\nContent-Length: 5"),
    (400, b"Content-Length: 5\r\nTransfer-Encoding: chunked"),
    (400, b"Content-Length: 0\r\nContent-Length: 35"),
    (400, b"Content-Length: 0, 35"),
    (400, b"Content-Length: +0"),
    (400, b"Content-Length:"),
    (400, b"Host: b"),
]


class Hostile(ProgramTest):
    @classmethod
    def setUpClass(cls):
        cls.server = live.Server("--request-timeout", 20)

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0

    def ask(self, data):
        """What comes back first, read until it is whole or the connection ends."""
        with self.server.connect() as connection:
            try:
                connection.sendall(data)
            except OSError:
                pass  # refused before it was all sent
            answer = b""
            while True:
                head, separator, body = answer.partition(b"\r\n\r\n")
                lengths = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
                if separator and lengths and len(body) >= int(lengths[0].split(b":")[1]):
                    return head, body
                try:
                    piece = connection.recv(65536)
                except ConnectionResetError:
                    piece = b""
                if not piece:
                    return head, body
                answer += piece

    def test_each_is_refused(self):
        for status, data in RAW:
            with self.subTest(data[:80]):
                start = time.monotonic()
                head, body = self.ask(data)
                self.assertLess(time.monotonic() - start, 15 * live.SLOWNESS)
                self.assertIn(f"HTTP/1.1 {status} ".encode(), head + b" ", body[:200])
                error = json.loads(body)["error"]
                self.assertEqual(set(error), {"message", "type", "param", "code"})
                self.assertLess(len(error["message"]), 700)
        self.assertEqual(self.server.get("/health")[0], 200)
        self.server.wait_idle()

    def test_no_body_is_run_as_a_request(self):
        # The body is a request itself, so that each answer beyond the first comes of it.
        for version, cases in ((b"1.1", FRAMING), (b"1.0", [(400, b"Transfer-Encoding: chunked")])):
            for status, headers in cases:
                with self.subTest(headers):
                    data = self.server.raw(b"POST /tokenize HTTP/" + version + b"\r\nHost: a\r\n" + headers +
                                           b"\r\n\r\n" + GET)
                    self.assertTrue(data.startswith(f"HTTP/1.1 {status} ".encode()), data)
                    self.assertEqual(data.count(b"HTTP/1.1 "), 1, data)
                    self.assertIn(b"Connection: close", data)

    def test_what_never_ends_is_refused(self):
        chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n"
        for start, piece in ((chunked + b"1;", b"a" * 65536), (chunked, b"0" * 65536),
                             (chunked + b"0\r\n", b"X: a\r\n" * 10000),
                             (chunked, b"1;" + b"a" * 9000 + b"\r\na\r\n")):
            with self.subTest(piece[:10]), self.server.connect() as connection:
                before = self.server.memory()
                sent = len(start)
                try:
                    connection.sendall(start)
                    while sent < 256 << 20:
                        connection.sendall(piece)
                        sent += len(piece)
                except OSError:
                    pass  # refused: nobody reads any more
                self.assertLess(sent, 100 << 20)
                self.assertLess(self.server.memory() - before, 30e6 * live.SLOWNESS)

    def test_what_never_ends_is_refused_with_a_reason(self):
        chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n"
        for data in (chunked + b"1;" + b"a" * 20000, chunked + b"0" * 20000, chunked + b"0\r\n" + b"X: a\r\n" * 5000):
            self.assertIn(b"HTTP/1.1 431 ", self.ask(data)[0])

    def test_a_request_in_single_bytes(self):
        chunked = (b"POST /tokenize HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
                   b"11;x=y\r\n{\"prompt\": \"abc\"}\r\n0\r\nX: a\r\n\r\n")
        empty = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        for data, says in ((http_post("/tokenize", {"prompt": "abc"}, "Connection: close\r\n"), b'"count"'),
                           (chunked, b'"count"'), (empty, b"400 Bad Request")):
            with self.server.connect() as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for byte in data:
                    connection.sendall(bytes([byte]))
                self.assertIn(says, live.read_all(connection))

    def test_garbage(self):
        import random
        randomness = random.Random(7)
        seeds = [data for _, data in RAW if len(data) < 500] + [http_post(COMPLETION, {"prompt": "a", "max_tokens": 1})]
        for _ in range(300):
            data = bytearray(randomness.choice(seeds))
            for _ in range(randomness.randint(1, 8)):
                data[randomness.randrange(len(data))] = randomness.randrange(256)
            with self.server.connect() as connection:
                connection.sendall(bytes(data))
                connection.shutdown(socket.SHUT_WR)
                live.read_all(connection)
        self.assertEqual(self.server.get("/health")[0], 200)
        self.server.wait_idle()

    def test_many_idle_connections_harm_nobody(self):
        held = [self.server.connect() for _ in range(500)]
        start = time.monotonic()
        self.server.complete("a", max_tokens=5)
        self.assertLess(time.monotonic() - start, 10 * live.SLOWNESS)
        for connection in held:
            connection.close()


if __name__ == "__main__":
    unittest.main(verbosity=1)
