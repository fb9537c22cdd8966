"""A running `spinfer serve` for the tests, and clients that behave well or badly."""

import asyncio
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "apps"))
import program  # noqa: E402
from program import LLAMA, SLOWNESS, command  # noqa: E402,F401

CHAT_TEMPLATE = ("{% for m in messages %}{{ bos_token if loop.first }}{{ m.role }}: {{ m.content|trim }}\n{% endfor %}"
                 "{% if add_generation_prompt %}assistant:{% endif %}")


def model_with_chat(directory, template=CHAT_TEMPLATE):
    """A copy of the demo model in `directory` that has a chat template."""
    directory = pathlib.Path(directory) / "demo-chat"
    shutil.copytree(LLAMA, directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    return directory


class Server:
    """`spinfer serve` on a free port; as a context manager it is stopped, and must not have crashed."""

    def __init__(self, *arguments, model=LLAMA, env=None, ready=True):
        self.process = subprocess.Popen(
            command("serve", *(("-m", model) if model else ()), "--port", 0, "--json", "-t", 2, *arguments), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**os.environ, **(env or {})})
        self.errors = []
        self.reader = threading.Thread(target=lambda: self.errors.extend(self.process.stderr), daemon=True)
        self.reader.start()
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.reader.join()
            raise RuntimeError(f"no server: {b''.join(self.errors).decode()}")
        self.url = json.loads(line)["url"]
        self.port = int(self.url.rsplit(":", 1)[1])
        if ready:
            event = self.process.stdout.readline()
            assert event and json.loads(event)["event"] == "ready", self.stderr()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stderr(self):
        return b"".join(self.errors).decode(errors="replace")

    def stop(self, by=signal.SIGTERM, timeout=60):
        """The exit status after `by`; checks that it is no crash."""
        if self.process.poll() is None:
            self.process.send_signal(by)
        try:
            status = self.process.wait(timeout * SLOWNESS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self.reader.join()
        self.process.stdout.close()
        self.process.stderr.close()
        assert status >= 0, f"ended by signal {-status}: {self.stderr()}"
        assert "Sanitizer" not in self.stderr(), self.stderr()
        return status

    # ---- plain requests

    def request(self, method, path, body=None, headers=None, timeout=60):
        """(status, headers, body bytes)"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout * SLOWNESS)
        try:
            if body is not None and not isinstance(body, (bytes, str)):
                body = json.dumps(body)
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def post(self, path, body, **more):
        status, _, text = self.request("POST", path, body, **more)
        return status, json.loads(text)

    def get(self, path, **more):
        status, _, text = self.request("GET", path, **more)
        return status, text

    def complete(self, prompt, **fields):
        status, answer = self.post("/v1/completions", {"prompt": prompt, **fields})
        assert status == 200, answer
        return answer

    def metrics(self):
        """{"spinfer_requests_running": 1.0, 'spinfer_kv_blocks{state="free"}': …}"""
        lines = self.get("/metrics")[1].decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def wait_for(self, holds, seconds=60):
        """Waits until `holds(metrics)`; returns these."""
        end = time.monotonic() + seconds * SLOWNESS
        while not holds(now := self.metrics()):
            assert time.monotonic() < end, now
            time.sleep(0.002)
        return now

    def wait_idle(self, seconds=10):
        """Waits until nothing runs or waits, and all KV blocks are back; returns how long that took."""
        start = time.monotonic()
        self.wait_for(lambda now: now["spinfer_requests_running"] == now["spinfer_requests_waiting"] == now[
            'spinfer_kv_blocks{state="used"}'] == 0, seconds)
        return time.monotonic() - start

    # ---- sockets

    def connect(self, timeout=20, receive_buffer=None):
        connection = socket.socket()
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(timeout * SLOWNESS)
        try:
            connection.connect(("127.0.0.1", self.port))
        except OSError:
            connection.close()
            raise
        return connection

    def raw(self, data, timeout=20, finish=False):
        """Everything the server says to these bytes until it closes the connection."""
        with self.connect(timeout) as connection:
            try:
                connection.sendall(data)
                if finish:
                    connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it may refuse before it has everything
            return read_all(connection)

    def memory(self):
        """Resident bytes of the server."""
        pages = pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")


def read_all(connection):
    data = b""
    while True:
        try:
            piece = connection.recv(65536)
        except ConnectionResetError:
            return data
        if not piece:
            return data
        data += piece


def http_post(path, body, more=""):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: a\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


def events_of(text):
    """The parsed data of an SSE body, [DONE] as a string."""
    events = []
    for block in text.decode("utf-8").split("\n\n")[:-1]:
        assert block.startswith("data: "), block
        data = block[len("data: "):]
        events.append(data if data == "[DONE]" else json.loads(data))
    return events


async def stream(port, body, path="/v1/completions", on_event=None):
    """(text, finish reason, seconds to first and between events) of a streamed request, as a patient client."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    start = time.monotonic()
    writer.write(http_post(path, {"stream": True, **body}))
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0]:
        writer.close()
        raise RuntimeError(head.decode())
    text, finish, times = "", None, [start]
    done = False
    while not done:
        size = int(await reader.readline(), 16)
        data = await reader.readexactly(size + 2)
        if size == 0:
            break
        for event in events_of(data[:-2]):
            if event == "[DONE]":
                done = True
                continue
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            times.append(time.monotonic())
            for choice in event["choices"]:
                text += choice["text"]
                finish = choice["finish_reason"] or finish
            if on_event:
                on_event(event)
    assert done, "the stream ended without [DONE]"
    writer.close()
    return text, finish, [b - a for a, b in zip(times, times[1:])]


def percentile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))]


main = program.main
