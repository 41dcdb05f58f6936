"""The page in a real browser: both themes, a phone, no scripts, a keyboard; nothing red in the console."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flash_attn3_sm121.hub.store import Hub
from tests.browser import CONTRAST, NAMELESS, Browser, Page, new_page, seen, until
from tests.hub_server.harness import REPO, Server, running

pytestmark = pytest.mark.browser

SCREENS = {
    "light": {"width": 1200, "height": 900, "dark": False},
    "dark": {"width": 1200, "height": 900, "dark": True},
    "phone-light": {"width": 360, "height": 780, "dark": False},
    "phone-dark": {"width": 360, "height": 780, "dark": True},
}
PATHS = {
    "hub": "/",
    "repository": f"/{REPO}/",
    "history": "/history.html",
    "missing": "/no/such/page",
    "index": "/simple/flash-attn3-sm121/",
}


def shot(page: Page, tmp_path: Path, name: str) -> None:
    """Kept where KEEP_SCREENSHOTS says, for people to look at."""
    folder = Path(os.environ.get("KEEP_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.png"
    page.screenshot(path=file, full_page=True)
    assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 2000


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("name", PATHS)
def test_it_fits_and_can_be_read(browser: Browser, server: Server, tmp_path: Path, name: str, screen: str) -> None:
    page = new_page(browser, **SCREENS[screen])
    page.goto(server.url + PATHS[name])
    assert seen(page).problems == [] or name == "missing"  # whose status is an error
    assert {url.split("/")[2] for url in seen(page).requests} == {server.url.split("/")[2]}  # nobody else is asked
    if name != "index":  # pip's page is plain on purpose
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= SCREENS[screen]["width"]
        assert page.evaluate(CONTRAST) == []
        assert page.evaluate(NAMELESS) == []
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(int(part) for part in background[4:-1].split(",")) / 3
        assert (brightness < 64) is SCREENS[screen]["dark"]
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = false)")
    shot(page, tmp_path, f"{name}-{screen}")
    page.context.close()


def test_it_says_what_there_is(browser: Browser, server: Server, hub: Hub) -> None:
    index = hub.index()
    page = new_page(browser)
    page.goto(server.url)
    text = page.evaluate("document.body.innerText")
    for name, wheel in index.wheels.items():
        assert name in text and wheel.sha256 in text
    assert all(name in text for name in index.repos)
    machines = page.evaluate("[...document.querySelectorAll('#machines tbody tr')].map(r => r.innerText)")
    assert "GB10" in machines[0] and "sm_121" in machines[0] and "aarch64" in machines[0]
    assert all("fallbacks" in row for row in machines[1:])
    page.click("#wheels details summary")
    page.wait_for_selector("#wheels details[open]")
    provenance = page.inner_text("#wheels details[open]")
    assert "3effce8" in provenance and "nanochat" in provenance
    page.click(f"a[href='{REPO}/']")
    page.wait_for_url(f"{server.url}/{REPO}/")  # and for its load: the address changes before there is any text
    assert index.repos[REPO].refs["main"] in page.inner_text("body")
    assert seen(page).problems == []
    page.context.close()


def test_a_click_copies_a_command(browser: Browser, server: Server) -> None:
    page = new_page(browser)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(server.url)
    page.click(".copy")
    until(page, "document.querySelector('.copy').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == f"export HF_ENDPOINT={server.url}"
    until(page, "document.querySelector('.copy').textContent === 'Copy'")
    assert seen(page).problems == []
    page.context.close()


def test_without_scripts_all_of_it_is_there(browser: Browser, server: Server, tmp_path: Path) -> None:
    page = new_page(browser, scripts=False)
    page.goto(server.url)
    words = page.inner_text("body")
    assert "export HF_ENDPOINT=http://HUB" in words and "stands for the address" in words
    assert "Copy" not in words  # a button that could do nothing is not shown
    command = page.locator(":text('export HF_ENDPOINT')").last
    assert command.evaluate("element => getComputedStyle(element).userSelect") == "all"  # one click selects all of it
    shot(page, tmp_path, "no-scripts")
    assert seen(page).problems == []
    page.context.close()


def test_the_search_finds_wheels(browser: Browser, server: Server) -> None:
    page = new_page(browser)
    page.goto(f"{server.url}/history.html")
    shown = "[...document.querySelectorAll('[data-search]')].filter(e => !e.hidden).length"
    assert page.evaluate(shown) == 3
    for text, count in (("AARCH64 sm_121", 1), ("nothing like it", 0), ("", 3)):
        page.fill(".search input", text)
        assert page.evaluate(shown) == count
        assert page.evaluate("document.querySelector('#no-match').hidden") is (count > 0)
    page.context.close()


def test_a_keyboard_is_enough(browser: Browser, server: Server) -> None:
    page = new_page(browser)
    page.goto(server.url)

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left >= 0")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.tagName"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert {"A", "PRE", "BUTTON"} <= set(reached)
    page.context.close()


def test_an_empty_hub_says_what_to_do(browser: Browser, tmp_path: Path) -> None:
    hub = Hub.create(tmp_path / "hub")
    with running(hub.layout.root) as server:
        page = new_page(browser, width=700)
        page.goto(server.url)
        assert "flash-attn3 hub publish" in page.evaluate("document.body.innerText")
        assert seen(page).problems == []
        shot(page, tmp_path, "empty")
        page.context.close()
