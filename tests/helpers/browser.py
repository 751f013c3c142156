"""Headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


class Browser:
    """A context manager: one page.

    `errors`: what went to the console as an error, exceptions, refused loads.
    """

    def __init__(self, width: int = 1280, height: int = 900):
        self.width, self.height, self.errors = width, height, []
        self._numbers = itertools.count(1)

    def __enter__(self) -> Browser:
        from websockets.sync.client import connect

        self._folder = tempfile.mkdtemp(prefix="chromium-")
        self._process = subprocess.Popen(
            [PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu", "--mute-audio",
             "--autoplay-policy=no-user-gesture-required", "--disable-dev-shm-usage",
             "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
             "--remote-debugging-port=0", f"--user-data-dir={self._folder}",
             f"--window-size={self.width},{self.height}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        port = Path(self._folder) / "DevToolsActivePort"
        self._until(port.exists, 60)
        self._until(lambda: port.read_text().count("\n"), 10)
        number = port.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{number}/json") as answer:
            (target,) = [t for t in json.load(answer) if t["type"] == "page"]
        self._socket = connect(target["webSocketDebuggerUrl"], max_size=None)
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=self.width, height=self.height, deviceScaleFactor=1, mobile=self.width < 600,
        )  # fmt: skip
        return self

    def __exit__(self, *args) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def call(self, method: str, **params) -> dict:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == number:
                return message["result"]
            self._note(message)

    def _note(self, message: dict) -> None:
        kind, params = message.get("method"), message.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif kind == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.errors.append(str(params["args"]))
        elif kind == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])

    def run(self, script: str):
        """The value of an expression in the page."""
        made = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True,
            userGesture=True,
        )  # fmt: skip
        assert "exceptionDetails" not in made, made
        return made["result"].get("value")

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def wait(self, script: str, seconds: float = 60) -> None:
        self._until(lambda: self.run(script), seconds)

    def press(self, key: str, modifiers: int = 0) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, modifiers=modifiers)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def picture(self, path: str | Path) -> None:
        made = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(made["data"]))

    @staticmethod
    def _until(there, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not there():
            assert time.monotonic() < until, "it did not come"
            time.sleep(0.05)
