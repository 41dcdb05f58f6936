"""One conversation in two tabs of one browser: neither loses what the other has written, and both tell the truth."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser import Browser, Page, new_page, seen, until
from tests.nanochat_web.harness import Server
from tests.nanochat_web.pages import SCREENS, answered, shot, write

pytestmark = pytest.mark.browser

BODY = "[...document.querySelectorAll('.assistant .body')].at(-1)?.innerText.trim()"
NOTE = "[...document.querySelectorAll('.assistant .note')].at(-1)?.innerText"


@pytest.fixture
def second(browser: Browser, page: Page, server: Server) -> Iterator[Page]:
    """A tab beside `page`, not opened yet."""
    tab = new_page(browser, **SCREENS["light"], beside=page)
    yield tab
    assert seen(tab).problems == []


def test_an_answer_that_another_tab_asked_for_is_seen_in_both(page: Page, second: Page, server: Server) -> None:
    server.world.gate("tabs", 2)
    write(page, "gate tabs")
    until(page, f"{BODY} === '01'")
    second.goto(server.url)
    until(second, f"{BODY} === '01'")
    assert second.inner_text("#send") == "Stop"
    shot(second, "tabs")
    server.world.gate("tabs", 4)
    until(second, f"{BODY} === '0123'")
    server.world.gate("tabs", 99)
    until(second, f"{NOTE}?.includes('tokens')")
    assert second.evaluate(BODY) == answered(page) == "0123456789"


def test_what_one_tab_has_written_is_not_overwritten_by_the_other(page: Page, second: Page, server: Server) -> None:
    page.bring_to_front()
    write(page, "echo one")
    answered(page)
    second.goto(server.url)
    until(second, "document.querySelectorAll('.message').length === 2")
    write(page, "echo two")
    assert answered(page, 2) == "two"
    until(second, "document.querySelectorAll('.message').length === 4")
    second.bring_to_front()
    write(second, "echo three")
    assert answered(second, 3) == "three"
    until(page, "document.querySelectorAll('.message').length === 6")
    page.goto(server.url)
    until(page, "document.querySelectorAll('.message').length === 6")


def test_the_tab_that_asked_is_closed(page: Page, second: Page, server: Server) -> None:
    second.goto(server.url)
    until(second, "!!document.querySelector('.empty')")
    write(second, "echo before")
    answered(second)
    page.goto(server.url)
    until(page, "document.querySelectorAll('.message').length === 2")
    server.world.gate("closed", 2)
    write(second, "gate closed")
    until(page, f"{BODY} === '01'")
    second.close(run_before_unload=False)
    server.world.gate("closed", 99)
    assert answered(page, 2) == "0123456789"
    write(page, "echo after")
    assert answered(page, 3) == "after"


def test_a_conversation_deleted_while_it_is_answered_stays_deleted(page: Page, server: Server) -> None:
    server.world.gate("deleted", 1)
    write(page, "gate deleted")
    until(page, f"{BODY} === '0'")
    page.click("#conversations summary")
    page.click("#conversations .danger")
    page.click("#conversations .danger")
    until(page, "!!document.querySelector('.empty')")
    server.world.gate("deleted", 99)
    server.wait_for(lambda: server.chats() == 0)
    page.goto(server.url)
    until(page, "!!document.querySelector('.empty')")
    assert page.evaluate("document.querySelectorAll('#conversations .open').length") == 0
