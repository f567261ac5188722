"""Headless Chromium through its DevTools pipe: what a page shows, and what its console says."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-pipe --hide-scrollbars""".split()
# All elements, those of web components too.
DEEP = """var deep = (root, name) => [...root.querySelectorAll('*')].flatMap(e => [
  ...(e.matches(name) ? [e] : []), ...(e.shadowRoot ? deep(e.shadowRoot, name) : [])]);"""


class Browser:
    """One page. `console` collects errors, warnings left out; an exception that no script caught is one."""

    def __init__(self, pipes: tuple[int, int]):
        (self.write_end, self.read_end), self.buffer, self.number, self.console = pipes, b"", 0, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = None
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, seconds: float = 120, **parameters) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if getattr(self, "session", None):
            message["sessionId"] = self.session
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + seconds
        while True:
            answer = self.read(until)
            self.note(answer)
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def read(self, until: float) -> dict:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read_end], [], [], max(0, until - time.monotonic()))
            assert ready, "Chromium does not answer"
            part = os.read(self.read_end, 1 << 20)
            assert part, "Chromium has ended"
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def note(self, message: dict) -> None:
        told = message.get("params", {})
        if message.get("method") == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.console.append(told["entry"])
        if message.get("method") == "Runtime.consoleAPICalled" and told["type"] == "error":
            self.console.append(told["args"])
        if message.get("method") == "Runtime.exceptionThrown":
            self.console.append(told["exceptionDetails"])

    def evaluate(self, expression: str):
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, url: str, width: int = 1200, height: int = 900, scheme: str = "light") -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=url)
        self.wait("document.readyState == 'complete'")

    def wait(self, condition: str, seconds: float = 90) -> None:
        until = time.monotonic() + seconds
        while not self.evaluate(condition):
            assert time.monotonic() < until, (condition, self.console)
            time.sleep(0.2)

    def screenshot(self, path: Path | None = None, clip: dict | None = None) -> np.ndarray:
        """(H, W, 3) uint8, of the window or of a rectangle of the whole page."""
        more = {"clip": clip | {"scale": 1}, "captureBeyondViewport": True} if clip else {}
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png", **more)["data"])
        if path:
            path.write_bytes(data)
        return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


@contextlib.contextmanager
def browser():
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()

        def connect():  # Chromium reads from descriptor 3 and writes to 4
            for number, end in ((3, os.dup(theirs_in)), (4, os.dup(theirs_out))):
                os.dup2(end, number)

        process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"], preexec_fn=connect,
            close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield Browser((ours_out, ours_in))
        finally:
            process.terminate()
            process.wait()
            for end in (theirs_in, ours_out, ours_in, theirs_out):
                os.close(end)
