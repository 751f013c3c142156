"""Chromium without a window, told what to do over two pipes (DevTools protocol)."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Browser:
    """One page. `errors` is what it complained of, `requests` what it wanted of the network."""

    def __init__(self, folder):
        self.errors: list[str] = []
        self.requests: list[str] = []
        ours, theirs = os.pipe(), os.pipe()  # to the browser, from it

        def connect():  # it reads from 3 and writes to 4
            source, target = os.dup(ours[0]), os.dup(theirs[1])
            os.dup2(source, 3)
            os.dup2(target, 4)

        flags = "--headless=new --no-sandbox --disable-gpu --mute-audio --remote-debugging-pipe"
        flags += " --autoplay-policy=no-user-gesture-required --no-first-run"
        flags += " --use-fake-ui-for-media-stream --use-fake-device-for-media-stream"
        self.process = subprocess.Popen(
            [PROGRAM, *flags.split(), f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            close_fds=False, preexec_fn=connect,
        )  # fmt: skip
        os.close(ours[0])
        os.close(theirs[1])
        self.to, self.source = os.fdopen(ours[1], "wb"), os.fdopen(theirs[0], "rb")
        self.number, self.rest, self.session = 0, b"", None
        pages = self.tell("Target.getTargets")["targetInfos"]
        target = next(page["targetId"] for page in pages if page["type"] == "page")
        attached = self.tell("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for part in ("Page", "Runtime", "Log", "Network"):
            self.tell(f"{part}.enable")

    def tell(self, method: str, **params) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.to.write(json.dumps(message).encode() + b"\0")
        self.to.flush()
        while True:
            while b"\0" not in self.rest:
                self.rest += os.read(self.source.fileno(), 1 << 20)
            line, _, self.rest = self.rest.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict) -> None:
        method, params = event.get("method"), event.get("params", {})
        said = {
            "Runtime.exceptionThrown": "error",
            "Log.entryAdded": params.get("entry", {}).get("level"),
            "Runtime.consoleAPICalled": params.get("type"),
        }
        if said.get(method) in ("error", "warning"):
            self.errors.append(json.dumps(params))
        if method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            self.requests += [] if url.startswith(("data:", "file:", "blob:")) else [url]

    def open(self, page: Path | str, width: int = 1280) -> None:
        """A file, or an address."""
        url = page if isinstance(page, str) else page.as_uri()
        self.tell("Emulation.setDeviceMetricsOverride", width=width, height=844,
                  deviceScaleFactor=1, mobile=width < 600)  # fmt: skip
        self.tell("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.protocol !== 'about:'")

    def run(self, expression: str):
        """The value of JavaScript."""
        result = self.tell("Runtime.evaluate", expression=expression, returnByValue=True,
                           awaitPromise=True, userGesture=True)  # fmt: skip
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not self.run(expression):
            assert time.monotonic() < end, expression
            time.sleep(0.02)

    def press(self, key: str, text: str = "", control: bool = False) -> None:
        more = {"text": text} if text else {}
        more |= {"modifiers": 2} if control else {}
        self.tell("Input.dispatchKeyEvent", type="keyDown", key=key, **more)
        self.tell("Input.dispatchKeyEvent", type="keyUp", key=key)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.to.close()
        self.source.close()
