"""The page at "/" in headless Chromium, driven over its debugging protocol: text streams in, figures show, no errors.
Skips, saying so, where no Chromium is installed."""

import base64
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import unittest
import urllib.request

import live
from program import ProgramTest

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


class Tab:
    """One page of a browser, over a WebSocket."""

    def __init__(self, url):
        host, path = url.removeprefix("ws://").split("/", 1)
        name, port = host.split(":")
        self.socket = socket.create_connection((name, int(port)), 60)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.socket.recv(1)
        self.calls, self.problems = 0, []

    def receive(self, count):
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            assert piece, "the browser went away"
            data += piece
        return data

    def message(self):
        text = b""
        while True:
            first, second = self.receive(2)
            size = second & 127
            if size == 126:
                size = struct.unpack(">H", self.receive(2))[0]
            elif size == 127:
                size = struct.unpack(">Q", self.receive(8))[0]
            text += self.receive(size)
            if first & 128:
                return json.loads(text)

    def call(self, method, **parameters):
        self.calls += 1
        data = json.dumps({"id": self.calls, "method": method, "params": parameters}).encode()
        mask = os.urandom(4)
        head = struct.pack(">BBH", 0x81, 0x80 | 126, len(data)) + mask
        self.socket.sendall(head + bytes(byte ^ mask[i % 4] for i, byte in enumerate(data)))
        while True:
            message = self.message()
            if message.get("method") == "Runtime.exceptionThrown":
                self.problems.append(message["params"]["exceptionDetails"])
            if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.problems.append(message["params"]["entry"])
            if message.get("id") == self.calls:
                assert "error" not in message, message
                return message["result"]

    def value(self, script):
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, script, seconds=60):
        end = time.monotonic() + seconds * live.SLOWNESS
        while not self.value(script):
            assert time.monotonic() < end, f"{script}: {self.value('document.body.innerText')}"
            time.sleep(0.1)


class Page(ProgramTest):
    def test_in_a_browser(self):
        program = next((path for path in map(shutil.which, BROWSERS) if path), None)
        if not program:
            self.skipTest("no Chromium is installed")
        profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.addCleanup(profile.cleanup)
        with live.Server(model=live.model_with_chat(self.tmp)) as server:
            browser = subprocess.Popen([program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
                                        "--disable-dev-shm-usage", f"--user-data-dir={profile.name}", "about:blank"],
                                       stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                                       start_new_session=True)
            try:
                line = ""
                while "DevTools listening on" not in line:
                    line = browser.stderr.readline()
                    self.assertTrue(line, "the browser did not start")
                base = line.split("ws://")[1].split("/")[0]
                tabs = json.load(urllib.request.urlopen(f"http://{base}/json"))
                tab = Tab(next(t for t in tabs if t["type"] == "page")["webSocketDebuggerUrl"])
                self.use(tab, server)
                self.assertEqual(tab.problems, [])
            finally:
                os.killpg(browser.pid, signal.SIGKILL)  # what is started may be a script around the browser
                browser.wait()
                browser.stderr.close()

    def use(self, tab, server):
        for domain in ("Runtime.enable", "Log.enable", "Page.enable"):
            tab.call(domain)
        tab.call("Page.navigate", url=server.url + "/")
        tab.wait_for("document.readyState === 'complete' && document.getElementById('model').textContent === 'demo-chat'")
        tab.value("document.getElementById('max-tokens').value = 60; document.getElementById('temperature').value = 0;"
                  "document.getElementById('send').click()")
        tab.wait_for("document.getElementById('figures').textContent.includes('60 tokens')")
        text = server.complete("The old man looked at her and said,", max_tokens=60, temperature=0, top_p=0.95)
        self.assertTrue(tab.value("document.getElementById('output').textContent").endswith(text["choices"][0]["text"]))
        tab.value("document.getElementById('tab-chat').click()")
        for turn in range(2):
            tab.value("document.getElementById('input').value = 'Hello'; document.getElementById('send').click()")
            tab.wait_for("!document.getElementById('send').disabled && document.querySelectorAll('.turn').length === "
                         f"{2 * turn + 2}")
        self.assertEqual(tab.value("document.querySelectorAll('.error').length"), 0)
        tab.value("document.getElementById('tab-completion').click();"
                  "document.getElementById('max-tokens').value = 100000; document.getElementById('send').click()")
        tab.wait_for("document.querySelectorAll('.error').length === 1")
        self.assertIn("512", tab.value("document.querySelector('.error').textContent"))
        tab.problems = [problem for problem in tab.problems if "400 (Bad Request)" not in problem.get("text", "")]
        tab.wait_for("document.getElementById('saving').textContent.includes('smaller')")
        tab.wait_for("+document.getElementById('generated').textContent > 60")
        self.assertEqual(tab.value("document.getElementById('state').textContent"), "ready")
        # Bigger than any screen would show a scroll bar: nothing overflows to the side.
        self.assertTrue(tab.value("document.documentElement.scrollWidth <= window.innerWidth"))


if __name__ == "__main__":
    unittest.main(verbosity=1)
