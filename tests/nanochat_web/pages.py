"""What the browser tests share: screens, opening, typing, waiting for an answer."""

from __future__ import annotations

import os
from pathlib import Path

from tests.browser import Browser, Page, new_page, until
from tests.nanochat_web.harness import Server

SCREENS = {
    "light": {"width": 1280, "height": 900, "dark": False},
    "dark": {"width": 1280, "height": 900, "dark": True},
    "phone-light": {"width": 320, "height": 780, "dark": False},
    "phone-dark": {"width": 320, "height": 780, "dark": True},
}


def opened_page(browser: Browser, server: Server, **screen: int | bool) -> Page:
    page = new_page(browser, **screen)
    page.goto(server.url)
    until(page, "!!document.querySelector('.empty, .notice')")
    return page


def shot(page: Page, name: str) -> None:
    """Kept where KEEP_SCREENSHOTS says, for people to look at."""
    if folder := os.environ.get("KEEP_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"web-{name}.png")


def write(page: Page, text: str) -> None:
    page.click("#message")
    page.keyboard.insert_text(text)
    if page.evaluate("matchMedia('(pointer: coarse)').matches"):
        page.click("#send")
    else:
        page.keyboard.press("Enter")


def answered(page: Page, number: int = 1) -> str:
    """The text of the last answer, once so many are complete."""
    until(page, f"document.querySelectorAll('.assistant').length === {number} && !document.querySelector('.streaming')")
    text: str = page.evaluate("[...document.querySelectorAll('.assistant .body')].at(-1).innerText")
    return text
