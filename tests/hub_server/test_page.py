"""The page in a real browser: both themes, a phone, no scripts, a keyboard; nothing red in the console."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flash_attn3_sm121.hub.store import Hub
from tests import browser as chromium
from tests.browser import Browser, Page
from tests.hub_server.harness import REPO, Server, running

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.find() is None, reason="Chromium is not installed: apt-get install chromium"),
]

SCREENS = {
    "light": {"width": 1200, "height": 900, "dark": False},
    "dark": {"width": 1200, "height": 900, "dark": True},
    "phone-light": {"width": 360, "height": 780, "dark": False},
    "phone-dark": {"width": 360, "height": 780, "dark": True},
}
PATHS = {"hub": "/", "repository": f"/{REPO}", "index": "/simple/flash-attn3-sm121/"}
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.launch() as started:
        yield started


def shot(page: Page, tmp_path: Path, name: str) -> None:
    """Kept where KEEP_SCREENSHOTS says, for people to look at."""
    folder = Path(os.environ.get("KEEP_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.png"
    page.screenshot(file, full=True)
    assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 2000


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("name", PATHS)
def test_it_fits_and_can_be_read(browser: Browser, server: Server, tmp_path: Path, name: str, screen: str) -> None:
    page = browser.page(**SCREENS[screen])
    page.open(server.url + PATHS[name])
    assert page.problems == []
    assert {url.split("/")[2] for url in page.requests} == {server.url.split("/")[2]}  # nobody else is asked
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
    page.close()


def test_it_says_what_there_is(browser: Browser, server: Server, hub: Hub) -> None:
    index = hub.index()
    page = browser.page()
    page.open(server.url)
    text = page.evaluate("document.body.innerText")
    for name, wheel in index.wheels.items():
        assert name in text and wheel.sha256 in text
    assert all(name in text for name in index.repos)
    machines = page.evaluate("[...document.querySelectorAll('#machines tbody tr')].map(r => r.innerText)")
    assert "GB10" in machines[0] and "sm_121" in machines[0] and "aarch64" in machines[0]
    assert all("fallbacks" in row for row in machines[1:])
    page.click("#wheels details summary")
    provenance = page.wait_for("document.querySelector('#wheels details[open]')?.innerText")
    assert "3effce8" in provenance and "nanochat" in provenance
    page.click(f"a[href='{REPO}']")
    page.wait_for(f"location.pathname === '/{REPO}'")
    assert index.repos[REPO].refs["main"] in page.wait_for("document.body?.innerText")
    assert page.problems == []
    page.close()


def test_a_click_copies_a_command(browser: Browser, server: Server) -> None:
    page = browser.page()
    browser.call(
        "Browser.grantPermissions",
        permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
        browserContextId=page.context,
    )
    page.open(server.url)
    page.click(".copy")
    page.wait_for("document.querySelector('.copy').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == f"export HF_ENDPOINT={server.url}"
    page.wait_for("document.querySelector('.copy').textContent === 'Copy'")
    assert page.problems == []
    page.close()


def test_without_scripts_all_of_it_is_there(browser: Browser, server: Server, tmp_path: Path) -> None:
    page = browser.page(scripts=False)
    page.open(server.url)
    tree = page.call("DOMSnapshot.captureSnapshot", computedStyles=["user-select"])
    words = tree["strings"]
    assert f"export HF_ENDPOINT={server.url}" in words
    assert "Copy" not in words  # a button that could do nothing is not shown
    assert "all" in words  # one click selects a whole command
    shot(page, tmp_path, "no-scripts")
    assert page.problems == []
    page.close()


def test_a_keyboard_is_enough(browser: Browser, server: Server) -> None:
    page = browser.page()
    page.open(server.url)

    def press(key: str, code: int) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            page.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    press("Tab", 9)
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left >= 0")
    seen = []
    for _ in range(12):
        press("Tab", 9)
        seen.append(page.evaluate("document.activeElement.tagName"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert {"A", "PRE", "BUTTON"} <= set(seen)
    page.close()


def test_an_empty_hub_says_what_to_do(browser: Browser, tmp_path: Path) -> None:
    hub = Hub.create(tmp_path / "hub")
    with running(hub.layout.root) as server:
        page = browser.page(width=700)
        page.open(server.url)
        assert "flash-attn3 hub publish" in page.evaluate("document.body.innerText")
        assert page.problems == []
        shot(page, tmp_path, "empty")
        page.close()
