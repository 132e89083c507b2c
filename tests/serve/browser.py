"""Headless Chromium, driven by its DevTools protocol through a pair of pipes: no driver, no socket, no package."""

import base64
import json
import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any


class Browser:
    """One page; the methods are the few steps of a person who tries a model.

    Args:
        chromium: the program.
        profile: an empty folder for its files.
        width: of the window, in pixels.
    """

    def __init__(self, chromium: str, profile: Path, width: int = 1280) -> None:
        reads, self._requests = os.pipe()
        self._answers, writes = os.pipe()
        options = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars".split()
        options += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        # Chromium reads from descriptor 3 and writes to 4.
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" "$@" 3<&{reads} 4>&{writes}', chromium, *options],
            pass_fds=(reads, writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(reads)
        os.close(writes)
        self._rest, self._number, self._session = b"", 0, None
        (page,) = (target for target in self.tell("Target.getTargets")["targetInfos"] if target["type"] == "page")
        attached = self.tell("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        self.resize(width)

    def tell(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its answer; events are passed over."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                if not (more := os.read(self._answers, 1 << 20)):
                    raise ConnectionError("Chromium has ended")
                self._rest += more
            line, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def resize(self, width: int, height: int = 900) -> None:
        self.tell(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def open(self, url: str) -> None:
        self.tell("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.tell("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)["result"]
        return result.get("value")

    def wait(self, script: str, seconds: float = 60) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.run(script):
                return value
            time.sleep(0.1)
        raise TimeoutError(f"{script} stays false; the page says: {self.run('document.body.innerText')}")

    def send_file(self, selector: str, *paths: Path) -> None:
        """As if the files had been chosen in the dialogue of an `<input type=file>`."""
        self.wait(f"document.querySelector({selector!r}) !== null")
        root = self.tell("DOM.getDocument")["root"]["nodeId"]
        node = self.tell("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.tell("DOM.setFileInputFiles", nodeId=node, files=list(map(str, paths)))

    def screenshot(self, path: Path) -> None:
        """Of the whole page, however long: the window grows to it."""
        width, height = self.run("[innerWidth, document.documentElement.scrollHeight]")
        self.resize(width, height)
        time.sleep(0.5)  # tables are laid out anew
        path.write_bytes(base64.b64decode(self.tell("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        with suppress(ConnectionError):
            self.tell("Browser.close")
        self._process.wait(30)
        os.close(self._requests)
        os.close(self._answers)
