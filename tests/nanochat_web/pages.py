"""What the browser tests share: screens, opening, typing, waiting for an answer."""

from __future__ import annotations

import os
from pathlib import Path

from tests.browser import Browser, Page
from tests.nanochat_web.harness import Server

SCREENS = {
    "light": {"width": 1280, "height": 900, "dark": False},
    "dark": {"width": 1280, "height": 900, "dark": True},
    "phone-light": {"width": 360, "height": 780, "dark": False},
    "phone-dark": {"width": 360, "height": 780, "dark": True},
}


def opened_page(browser: Browser, server: Server, **screen: int | bool) -> Page:
    page = browser.page(**screen)
    page.open(server.url)
    page.wait_for("!!document.querySelector('.empty, .notice')")
    return page


def shot(page: Page, name: str) -> None:
    """Kept where KEEP_SCREENSHOTS says, for people to look at."""
    if folder := os.environ.get("KEEP_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(Path(folder) / f"web-{name}.png")


def press(page: Page, key: str, code: int, *, shift: bool = False) -> None:
    text = {"text": "\r"} if key == "Enter" else {}
    for kind in ("keyDown", "keyUp"):
        page.call(
            "Input.dispatchKeyEvent",
            type=kind,
            key=key,
            code=key,
            windowsVirtualKeyCode=code,
            modifiers=8 if shift else 0,
            **(text if kind == "keyDown" else {}),
        )


def write(page: Page, text: str) -> None:
    page.click("#message")
    page.type(text)
    press(page, "Enter", 13)


def answered(page: Page, number: int = 1) -> str:
    """The text of the last answer, once so many are complete."""
    page.wait_for(
        f"document.querySelectorAll('.assistant').length === {number} && !document.querySelector('.streaming')"
    )
    text: str = page.evaluate("[...document.querySelectorAll('.assistant .body')].at(-1).innerText")
    return text
