"""A real browser for tests: Chromium without a window, driven over a pipe with the DevTools protocol.

Nothing beside the standard library is needed: `--remote-debugging-pipe` speaks JSON ended by NUL on descriptors 3 and 4.
https://chromedevtools.github.io/devtools-protocol/ has the commands and events.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
"""The browser's program; `None` where none is installed."""

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-extensions",
    "--mute-audio",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Page:
    """One tab: commands go out, answers and events come in, each as JSON."""

    def __init__(self, to_browser: int, from_browser: int, timeout_s: float) -> None:
        self._out, self._in, self._timeout_s = to_browser, from_browser, timeout_s
        self._numbers, self._buffer, self._session = itertools.count(1), b"", None
        self.events: list[Mapping[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Mapping[str, Any]:
        """The result of one command; events that come meanwhile are kept in `events`."""
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        message = json.dumps({"id": number, "method": method, "params": parameters, **session})
        os.write(self._out, message.encode() + b"\0")
        while True:
            got = self._read()
            if got.get("id") == number:
                assert "error" not in got, (method, got["error"])
                return got["result"]
            self.events.append(got)

    def open(
        self,
        path: Path,
        *,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        paper: bool = False,
        scripts: bool = True,
        fragment: str = "",
    ) -> None:
        """Load a file at a width in CSS pixels, in light or dark, on the screen or as printed, with scripts or without.

        Args:
            path: Of the file.
            width: Of the window.
            height: Of the window.
            dark: Whether the reader prefers dark pages.
            paper: Whether it is laid out for printing.
            scripts: Whether scripts run.
            fragment: What follows the address, with its `#`.
        """
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="print" if paper else "screen", features=[scheme])
        if fragment:  # where only the fragment differs from what is open, nothing would be loaded
            self._load("about:blank")
        self._load(f"{path.resolve().as_uri()}{fragment}")

    def _load(self, address: str) -> None:
        self.events.clear()
        self.call("Page.navigate", url=address)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives in the page, or the promise that it gives."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key, by its name in the DOM: `ArrowRight`, `Enter`."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def point(self, x: float, y: float, *, click: bool = False) -> None:
        """Move the mouse to a place in the window, and click there."""
        for kind in ("mouseMoved", *(("mousePressed", "mouseReleased") if click else ())):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left" if click else "none", clickCount=1)

    def screenshot(self) -> bytes:
        """The whole page as PNG, not the visible part alone."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def pdf(self) -> bytes:
        """The page as it prints."""
        printed = self.call("Page.printToPDF", printBackground=False, paperWidth=8.27, paperHeight=11.69)
        return base64.b64decode(printed["data"])

    def complaints(self) -> list[str]:
        """What the console says: messages, refusals of the content policy, exceptions."""
        said = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in said]

    def requests(self) -> list[str]:
        """Addresses that the page asked for, itself and what it carries within left out."""
        asked = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        found = [item["request"]["url"] for item in asked if item.get("type") != "Document"]
        return [address for address in found if not address.startswith("data:")]

    def _read(self) -> Mapping[str, Any]:
        deadline = time.monotonic() + self._timeout_s
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(self._in, 1 << 20) if ready else b""
            if not part:
                raise TimeoutError(f"the browser did not answer within {self._timeout_s} s")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@contextmanager
def browser(profile: Path, timeout_s: float = 60.0) -> Iterator[Page]:
    """A tab of a fresh browser, which is ended afterwards.

    Args:
        profile: An empty folder for what the browser writes.
        timeout_s: How long one answer may take.
    """
    assert CHROMIUM is not None
    there, out = os.pipe()
    back, here = os.pipe()
    command = shlex.join([CHROMIUM, *_FLAGS, f"--user-data-dir={profile}"])
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command} 3<&{there} 4>&{here}"],
        pass_fds=(there, here),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(there)
    os.close(here)
    try:
        yield Page(out, back, timeout_s)
    finally:
        os.close(out)  # the browser ends when nobody speaks to it any more
        os.close(back)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
