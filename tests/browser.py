"""Playwright with Debian's Chromium: pages in the sizes and themes that tests ask for, and what went wrong in them.

A test takes the fixture `browser` of tests/conftest.py:

    page = new_page(browser, width=390, height=844, dark=True)
    page.goto(url)
    ...
    assert seen(page).problems == []      # console errors, exceptions, failed loads
    page.context.close()
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60.0  # seconds

# Contrast of every element that has text of its own, against the nearest background that is painted.
CONTRAST = """
(() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = c => {
    const [r, g, b] = c.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    if (!e.getClientRects().length) continue;
    const a = light(parse(getComputedStyle(e).color).slice(0, 3)), b = light(ground(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push(`${e.tagName}.${e.className} ${ratio.toFixed(2)} ${e.textContent.trim().slice(0, 30)}`);
  }
  return bad;
})()
"""
NAMELESS = """
[...document.querySelectorAll("a, button, summary, [role=region]")]
  .filter(e => !(e.textContent.trim() || e.getAttribute("aria-label"))).map(e => e.outerHTML.slice(0, 80))
"""


@dataclass
class Seen:
    """What a person would see in red in the console, and every address that the page asked for."""

    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


_SEEN: WeakKeyDictionary[Page, Seen] = WeakKeyDictionary()


def find() -> str | None:
    """Chromium's path; None where it is not installed (`apt-get install chromium`)."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def launched() -> Iterator[Browser]:
    """A headless Chromium. Playwright downloads none of its own here.

    Playwright keeps an event loop running in this thread while it is open: no `asyncio.run` meanwhile.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find(), args=["--disable-quic", "--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def new_page(
    browser: Browser,
    *,
    width: int = 1200,
    height: int = 900,
    dark: bool = False,
    scripts: bool = True,
    beside: Page | None = None,
) -> Page:
    """A page in a profile of its own, or in that of another page. Below 600 pixels it is a touch screen."""
    context = (
        beside.context
        if beside
        else browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            is_mobile=width < 600,
            has_touch=width < 600,
            java_script_enabled=scripts,
        )
    )
    context.set_default_timeout(PATIENCE * 1000)
    page = context.new_page()
    found = _SEEN[page] = Seen()
    page.on("request", lambda request: found.requests.append(request.url))
    page.on("pageerror", lambda error: found.problems.append(f"exception: {error}"))

    def failed(request: object) -> None:
        if getattr(request, "failure", None) != "net::ERR_ABORTED":  # what a page that is left cuts off itself
            found.problems.append(f"failed to load: {getattr(request, 'url', '')} {getattr(request, 'failure', '')}")

    page.on("requestfailed", failed)
    page.on(
        "console",
        lambda message: found.problems.append(f"{message.type}: {message.text}")
        if message.type in ("error", "warning", "assert")
        else None,
    )
    return page


def seen(page: Page) -> Seen:
    """What happened in a page that `new_page` made."""
    return _SEEN[page]


def until(page: Page, script: str) -> Any:
    """The first true value of an expression (`page.wait_for_function` needs a page that allows `eval`)."""
    deadline = time.monotonic() + PATIENCE
    while not (value := page.evaluate(script)):
        assert time.monotonic() < deadline, f"never became true: {script}"
        page.wait_for_timeout(20)
    return value
