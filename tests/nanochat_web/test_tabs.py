"""One conversation in two tabs of one browser: neither loses what the other has written, and both tell the truth."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser import Browser, Page, new_page, seen, until
from tests.nanochat_web.harness import Server
from tests.nanochat_web.pages import SCREENS, answered, shot, write

pytestmark = pytest.mark.browser

BODY = "document.querySelector('.assistant .body')?.innerText.trim()"
NOTE = "document.querySelector('.assistant .note')?.innerText"
WAITS = "document.querySelector('#send').disabled"


@pytest.fixture
def second(browser: Browser, page: Page, server: Server) -> Iterator[Page]:
    """A tab beside `page`, not opened yet."""
    tab = new_page(browser, **SCREENS["light"], beside=page)
    yield tab
    assert seen(tab).problems == []


def test_an_answer_that_another_tab_is_writing_is_not_called_cut_off(page: Page, second: Page, server: Server) -> None:
    server.world.gate("tabs", 2)
    page.bring_to_front()
    write(page, "gate tabs")
    until(page, f"{BODY} === '01'")
    second.bring_to_front()
    second.goto(server.url)
    until(second, f"{NOTE}?.includes('Another tab is writing this')")
    until(second, f"{BODY} === '01'")
    assert second.evaluate(WAITS)
    shot(second, "tabs")
    # It goes on there, and here; what is typed here meanwhile is not sent, and not lost.
    write(second, "and then")
    server.world.gate("tabs", 4)
    until(second, f"{BODY} === '0123'")
    assert second.evaluate("document.querySelector('#message').value") == "and then"
    server.world.gate("tabs", 99)
    until(second, f"{NOTE}?.includes('tokens') && !{WAITS}")
    assert second.evaluate(BODY) == "0123456789"
    page.bring_to_front()
    assert answered(page) == "0123456789"


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


def test_the_writing_tab_is_closed(page: Page, second: Page, server: Server) -> None:
    second.bring_to_front()
    second.goto(server.url)
    until(second, "!!document.querySelector('.empty')")
    write(second, "echo before")
    answered(second)
    page.bring_to_front()
    page.goto(server.url)
    until(page, "document.querySelectorAll('.message').length === 2")
    server.world.gate("closed", 2)
    second.bring_to_front()
    until(second, "document.querySelectorAll('.message').length === 2")
    write(second, "gate closed")
    until(page, "[...document.querySelectorAll('.note')].at(-1)?.innerText.includes('Another tab')")
    second.close()
    until(page, "[...document.querySelectorAll('.note')].at(-1)?.innerText.includes('Cut off')")
    assert not page.evaluate(WAITS)
    server.world.gate("closed", 99)
    server.wait_for(lambda: server.chats() == 0)
    page.bring_to_front()
    write(page, "echo after")
    assert answered(page, 3) == "after"


def test_a_conversation_deleted_while_it_is_answered_stays_deleted(page: Page, server: Server) -> None:
    server.world.gate("deleted", 1)
    write(page, "gate deleted")
    until(page, f"{BODY} === '0'")
    page.click("#conversations summary")
    page.click("#conversations .danger")
    until(page, "!!document.querySelector('.empty')")
    server.world.gate("deleted", 99)
    server.wait_for(lambda: server.chats() == 0)
    page.goto(server.url)
    until(page, "!!document.querySelector('.empty')")
    assert page.evaluate("document.querySelectorAll('#conversations .open').length") == 0
