"""What the browser keeps: storage that is full, refused, or holds what this page did not write; access words."""

from __future__ import annotations

import pytest

from tests.browser import Browser, Page, new_page, seen, until
from tests.nanochat_web.harness import Server, World, running
from tests.nanochat_web.pages import SCREENS, answered, opened_page, shot, write

pytestmark = pytest.mark.browser

FILL = """(() => {
  for (let size = 1 << 20, at = 0; size >= 1; at += 1) {
    try { localStorage.setItem(`other/${at}`, 'x'.repeat(size)); } catch { size = Math.floor(size / 2); }
  }
})()"""
REFUSED = """for (const name of ['localStorage', 'sessionStorage']) {
  Object.defineProperty(window, name, { configurable: true, get() { throw new DOMException('', 'SecurityError'); } });
}"""
CONVERSATION = "nanochat-web/conversation/q"


def test_where_there_is_no_room_all_but_keeping_goes_on(page: Page) -> None:
    write(page, "echo one")
    answered(page)
    page.evaluate(FILL)
    write(page, "echo two " + "x" * 40)
    assert answered(page, 2) == "two " + "x" * 40  # and it is not replaced by what is stored
    until(page, "document.querySelector('#keys').innerText.includes('no room left')")
    assert page.locator(".message").count() == 4
    page.click("#model")
    page.click("[data-model='sft/d4/300']")
    assert "d4" in page.inner_text("#model-name")
    # A new conversation, where not even its name has room.
    page.evaluate("localStorage.removeItem('nanochat-web/current'); sessionStorage.clear()")
    page.evaluate(FILL)
    page.click("#new")
    write(page, "echo three")
    assert answered(page) == "three"


def test_a_browser_that_refuses_storage(browser: Browser, server: Server) -> None:
    page = new_page(browser, **SCREENS["light"])
    page.add_init_script(REFUSED)
    page.goto(server.url)
    until(page, "!!document.querySelector('.empty')")
    assert "conversations are gone when it is closed" in page.inner_text("#kept")
    for number, text in enumerate(("one", "two"), start=1):
        write(page, f"echo {text}")
        assert answered(page, number) == text
    page.click("#theme")
    assert page.inner_text("#theme") == "Theme: light"
    shot(page, "refused")
    assert seen(page).problems == []
    page.context.close()


@pytest.mark.parametrize(
    "text",
    [
        '{"id": "q" and no end',
        "5",
        '{"id": "q", "messages": [null]}',
        '{"id": "q", "messages": [{"role": "user", "content": 5}, {"role": "assistant"}]}',
    ],
)
def test_what_is_no_conversation_is_left_alone(page: Page, server: Server, text: str) -> None:
    page.evaluate(f"text => localStorage.setItem('{CONVERSATION}', text)", text)
    page.evaluate("localStorage.setItem('nanochat-web/current', 'q'); sessionStorage.clear()")
    page.evaluate(FILL)
    page.goto(server.url)
    until(page, "!!document.querySelector('.empty')")
    kept = f"['{CONVERSATION}', 'broken/{CONVERSATION}'].map(key => localStorage.getItem(key))"
    assert text in page.evaluate(kept)


def test_access_words_that_are_none_and_one_that_is_opened_in_an_open_page(browser: Browser, world: World) -> None:
    with running(world, env={"NANOCHAT_WEB_TOKEN": "50%of#x"}) as server:
        address = server.url.partition("#")[0]
        page = new_page(browser)
        page.goto(address)
        until(page, "document.querySelector('.notice')?.innerText.includes('access word')")
        for word in ("sésame", "“sesame”", "%zz"):  # no header can carry the second
            page.fill("#word", word)
            page.keyboard.press("Enter")
            until(page, "document.querySelector('#word')?.value === ''")
        page.goto(f"{address}#token=%zz")  # only what is behind the # changes: nothing is loaded
        until(page, "location.hash === '' && !!document.querySelector('#word')")
        page.goto(server.url)
        until(page, "!!document.querySelector('.empty') && location.hash === ''")
        write(page, "echo in")
        assert answered(page) == "in"
        page.reload()
        until(page, "document.querySelectorAll('.message').length === 2")
        page.context.close()
        other = opened_page(browser, server, **SCREENS["light"])
        assert other.evaluate("location.hash") == ""
        other.context.close()
