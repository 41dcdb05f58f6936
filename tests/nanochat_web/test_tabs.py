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


def test_the_button_says_stop_where_another_tab_has_asked(page: Page, second: Page, server: Server) -> None:
    write(page, "echo first")
    answered(page)
    second.goto(server.url)
    until(second, "document.querySelectorAll('.message').length === 2")
    second.evaluate("window.requestAnimationFrame = () => 0")  # as in a tab that is not looked at
    server.world.gate("button", 1)
    write(page, "gate button")
    until(second, "!!document.querySelector('.streaming')")
    assert second.inner_text("#send") == "Stop"
    server.world.gate("button", 99)
    assert answered(second, 2) == "0123456789" and second.inner_text("#send") == "Send"


def test_what_one_tab_has_written_is_not_overwritten_by_the_other(page: Page, second: Page, server: Server) -> None:
    page.bring_to_front()
    write(page, "echo one")
    answered(page)
    second.goto(server.url)
    until(second, "document.querySelectorAll('.message').length === 2")
    write(page, "echo two")
    assert answered(page, 2) == "two"
    until(second, f"{BODY} === 'two' && !document.querySelector('.streaming')")  # it had picked the answer up
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


TITLES = "[...document.querySelectorAll('#conversations .open')].map(one => one.innerText)"


def test_a_name_is_kept_that_was_given_while_an_answer_came(page: Page, second: Page, server: Server) -> None:
    server.world.gate("named", 1)
    write(page, "gate named")
    until(page, f"{BODY} === '0'")
    page.click("#new")
    page.click("#conversations summary")
    page.click("text=Rename")
    page.keyboard.insert_text("Here")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.innerText") == "Here"
    second.goto(server.url)
    until(second, f"{TITLES}[0] === 'Here'")
    second.click("#conversations summary")
    second.click("text=Rename")
    second.keyboard.insert_text("There")
    second.keyboard.press("Enter")
    until(page, f"{TITLES}[0] === 'There'")
    server.world.gate("named", 99)
    until(page, "!document.querySelector('#conversations .dot')")
    until(second, "!document.querySelector('#conversations .dot')")
    assert page.evaluate(TITLES) == second.evaluate(TITLES) == ["There"]


def test_what_is_being_edited_is_not_lost_to_another_tab(page: Page, second: Page, server: Server) -> None:
    write(page, "echo first")
    answered(page)
    second.goto(server.url)
    until(second, "document.querySelectorAll('.message').length === 2")
    second.locator(".user").hover()
    second.click("text=Edit")
    second.fill(".edit", "a better question")
    server.world.gate("writes", 1)
    write(page, "gate writes")
    until(second, f"{BODY} === '0'")
    assert second.input_value(".edit") == "a better question"
    server.world.gate("writes", 99)
    until(second, f"{BODY} === '0123456789' && !document.querySelector('.streaming')")
    assert second.input_value(".edit") == "a better question"


def test_menus_and_half_a_name_outlive_what_another_tab_writes(page: Page, second: Page, server: Server) -> None:
    write(page, "echo first")
    answered(page)
    second.goto(server.url)
    until(second, "document.querySelectorAll('.message').length === 2")
    second.click("#new")
    second.evaluate("window.stored = 0; addEventListener('storage', () => { window.stored += 1; })")
    second.click("#conversations summary")
    until(second, "document.querySelectorAll('.more[open]').length === 1")
    server.world.gate("writes", 1)
    write(page, "gate writes")
    until(second, "window.stored > 1")
    assert second.locator(".more[open]").count() == 1
    second.click("text=Rename")
    second.keyboard.insert_text("Half")
    server.world.gate("writes", 99)
    answered(page, 2)
    second.keyboard.insert_text(" and whole")
    second.keyboard.press("Enter")
    until(page, f"{TITLES}[0] === 'Half and whole'")
    page.reload()
    assert answered(page, 2) == "0123456789"  # what had come since is kept
