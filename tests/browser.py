"""A headless Chromium for tests, over its DevTools protocol (no driver to install: two pipes and JSON).

with launch() as browser:
    page = browser.page(width=390, height=844, dark=True)
    page.open("http://127.0.0.1:8765/")
    page.click("button")
    assert page.evaluate("document.title") == "..."
    page.screenshot(folder / "page.png")
    assert page.problems == []      # console errors, exceptions, failed loads
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
PATIENCE = 60.0


class BrowserError(AssertionError):
    """The browser answered with an error, or not in time."""


def find() -> str | None:
    """Chromium's path; None where it is not installed (`apt-get install chromium`)."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Browser:
    """One process. Messages are NUL-terminated JSON on two pipes."""

    process: subprocess.Popen[bytes]
    writer: int
    reader: int
    _buffer: bytes = b""
    _number: int = 0
    _pages: dict[str, Page] = field(default_factory=dict)

    def call(self, method: str, *, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self.writer, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._next(deadline, what=method)
            if answer.get("id") != number:
                continue
            if "error" in answer:
                raise BrowserError(f"{method}: {answer['error']}")
            result: dict[str, Any] = answer["result"]
            return result

    def pump(self, seconds: float) -> None:
        """Take in events for a while."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._ready(deadline):
                self._next(deadline + PATIENCE, what="an event")

    def _ready(self, deadline: float) -> bool:
        left = max(0.0, deadline - time.monotonic())
        return b"\0" in self._buffer or bool(select.select([self.reader], [], [], left)[0])

    def _next(self, deadline: float, *, what: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not self._ready(deadline):
                raise BrowserError(f"no answer to {what} in {PATIENCE:.0f} s")
            chunk = os.read(self.reader, 1 << 16)
            if not chunk:
                raise BrowserError(f"the browser ended (exit code {self.process.poll()}) while waiting for {what}")
            self._buffer += chunk
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        page = self._pages.get(message.get("sessionId", ""))
        if page is not None and "method" in message:
            page.take(message["method"], message["params"])
        return message

    def page(
        self,
        *,
        width: int = 1200,
        height: int = 900,
        dark: bool = False,
        scripts: bool = True,
        beside: Page | None = None,
    ) -> Page:
        """A new tab, in a profile of its own or in that of another one."""
        context = beside.context if beside else self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(browser=self, session=session, context=context, target=target)
        self._pages[session] = page
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[theme])
        if not scripts:
            page.call("Emulation.setScriptExecutionDisabled", value=True)
        return page


@dataclass
class Page:
    """One tab. `problems` gathers what a person would see in red in the console."""

    browser: Browser
    session: str
    context: str
    target: str
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    _loaded: int = 0

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, session=self.session, **params)

    def take(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded += 1
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Network.loadingFailed" and not params.get("canceled"):
            self.problems.append(f"failed to load: {params.get('errorText')} {params.get('blockedReason', '')}")
        elif method == "Runtime.exceptionThrown":
            self.problems.append(f"exception: {params['exceptionDetails']['text']}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(f"console: {[item.get('value') for item in params['args']]}")
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"log: {params['entry']['text']} {params['entry'].get('url', '')}")

    def open(self, url: str) -> None:
        before = self._loaded
        answer = self.call("Page.navigate", url=url)
        if "errorText" in answer:
            raise BrowserError(f"{url}: {answer['errorText']}")
        deadline = time.monotonic() + PATIENCE
        while self._loaded == before:
            if time.monotonic() > deadline:
                raise BrowserError(f"{url}: not loaded in {PATIENCE:.0f} s")
            self.browser.pump(0.05)

    def front(self) -> None:
        """Look at this tab: one behind another draws nothing."""
        self.call("Page.bringToFront")

    def evaluate(self, script: str) -> Any:
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            raise BrowserError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, script: str) -> Any:
        """The first truthy value of an expression."""
        deadline = time.monotonic() + PATIENCE
        while not (value := self.evaluate(script)):
            if time.monotonic() > deadline:
                raise BrowserError(f"never became true: {script}")
            self.browser.pump(0.05)
        return value

    def click(self, selector: str) -> None:
        """A true mouse click in the middle of the first match."""
        place = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e) return null;"
            " e.scrollIntoView({block: 'center', behavior: 'instant'}); const r = e.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        if place is None:
            raise BrowserError(f"nothing matches {selector!r}")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Text into whatever has the focus."""
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path, *, full: bool = False) -> None:
        params: dict[str, Any] = {"format": "png", "captureBeyondViewport": full}
        if full:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            params["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **params)["data"]))

    def close_tab(self) -> None:
        """As a person closes it: the page is told, and other tabs of the profile stay."""
        self.browser.call("Target.closeTarget", targetId=self.target)

    def close(self) -> None:
        """The profile with all its tabs."""
        self.browser.call("Target.disposeBrowserContext", browserContextId=self.context)


@contextmanager
def launch() -> Iterator[Browser]:
    """A browser with an empty profile; gone, with all its processes, at the end."""
    program = find()
    if program is None:
        raise BrowserError("no Chromium: apt-get install chromium")
    to_browser, from_browser = os.pipe(), os.pipe()
    # The protocol wants descriptors 3 and 4 in the child: from copies that cannot be 3 or 4 themselves.
    inner_read = fcntl.fcntl(to_browser[0], fcntl.F_DUPFD, 10)
    inner_write = fcntl.fcntl(from_browser[1], fcntl.F_DUPFD, 10)

    def wire() -> None:
        os.dup2(inner_read, 3)
        os.dup2(inner_write, 4)

    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(3, 4),
            preexec_fn=wire,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number in (to_browser[0], from_browser[1], inner_read, inner_write):
            os.close(number)
        browser = Browser(process=process, writer=to_browser[1], reader=from_browser[0])
        try:
            yield browser
        finally:
            _end(browser)


def _end(browser: Browser) -> None:
    if browser.process.poll() is None:
        try:
            browser.call("Browser.close")
        except (BrowserError, OSError):
            browser.process.terminate()
    os.close(browser.writer)
    os.close(browser.reader)
    try:
        browser.process.wait(20)
    except subprocess.TimeoutExpired:
        browser.process.kill()
        browser.process.wait()
