"""What becomes of answers on the page: reloads, lost connections, other answers, edits, going on, the calculator."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Route

from tests.browser import Browser, Page, new_page, seen, until
from tests.nanochat_web.harness import Network, Server, World, running
from tests.nanochat_web.pages import answered, opened_page, shot, write

pytestmark = pytest.mark.browser

BODY = "[...document.querySelectorAll('.assistant .body')].at(-1)?.innerText.trim()"
NOTE = "[...document.querySelectorAll('.assistant .note')].at(-1)?.innerText"


def test_an_answer_goes_on_across_a_reload(page: Page, server: Server) -> None:
    server.world.gate("reload", 2)
    write(page, "gate reload")
    until(page, f"{BODY} === '01'")
    page.goto(server.url)
    until(page, f"{BODY} === '01' && document.querySelector('#send').innerText === 'Stop'")
    server.world.gate("reload", 99)
    assert answered(page) == "0123456789" and "10 tokens" in page.evaluate(NOTE)
    # One that ended while nobody looked.
    server.world.gate("away", 2)
    write(page, "gate away")
    until(page, f"{BODY} === '01'")
    page.goto("about:blank")
    server.world.gate("away", 99)
    server.wait_for(lambda: server.chats() == 0)
    page.goto(server.url)
    until(page, f"{BODY} === '0123456789'")
    assert answered(page, 2) == "0123456789"


def test_a_lost_connection_is_taken_up_again(browser: Browser, server: Server) -> None:
    with Network(server.port) as network:
        page = new_page(browser, width=1000, height=800)
        page.goto(f"http://127.0.0.1:{network.port}/")
        until(page, "!!document.querySelector('.empty')")
        server.world.gate("lost", 2)
        write(page, "gate lost")
        until(page, f"{BODY} === '01'")
        network.fail()
        server.world.gate("lost", 99)
        assert answered(page) == "0123456789"
        assert any("/chat/answers/" in address for address in seen(page).requests)
        page.context.close()


def test_an_answer_that_the_server_no_longer_has(browser: Browser, world: World) -> None:
    with running(world) as server:
        page = opened_page(browser, server, width=1000, height=800)
        world.gate("gone", 2)
        write(page, "gate gone")
        until(page, f"{BODY} === '01'")
        page.goto("about:blank")
        port = str(server.port)
    world.gate("gone", 99)
    with running(world, "--port", port) as server:
        page.goto(server.url)
        until(page, f"{NOTE} === 'Cut off: the server no longer has this answer.'")
        assert page.evaluate(BODY) == "01"
        page.click("text=Continue")
        until(page, f"{NOTE}?.includes('8 tokens')")
        assert page.evaluate(BODY) == "0123456789"
        page.context.close()


def test_a_full_line_is_waited_for(browser: Browser, world: World) -> None:
    with running(world, "--slots", "1", "--queue", "0") as server:
        world.gate("full", 1)
        first = server.chat("gate full")
        first.until(lambda event: event.get("token") == "0")
        page = opened_page(browser, server, width=1000, height=800)
        write(page, "echo patience")
        until(page, "document.querySelector('.waiting')?.innerText.includes('Trying again in')")
        assert "The server is busy" in page.inner_text(".waiting")
        shot(page, "busy")
        world.gate("full", 99)
        first.rest()
        assert answered(page) == "patience"
        page.context.close()


def test_what_a_chat_waits_for_is_said(browser: Browser, world: World) -> None:
    with running(world, "--max-models", "1", "--slots", "1") as server:
        world.gate("held", 1)
        first = server.chat("gate held", model="sft/d4/300")
        first.until(lambda event: event.get("token") == "0")
        page = opened_page(browser, server, width=1000, height=800)
        write(page, "echo room")
        until(page, "document.querySelector('.waiting')?.innerText.includes('Waiting for room for d12')")
        assert (
            page.inner_text(".waiting") == "Waiting for room for d12: d4 goes when its chat has ended; yours is next…"
        )
        world.gate("held", 99)
        first.rest()
        assert answered(page) == "room"
        page.context.close()


def test_another_answer_and_back(page: Page) -> None:
    write(page, "echo once")
    assert answered(page) == "once"
    page.click("#settings summary")
    page.fill("#max-tokens", "2")
    page.keyboard.press("Escape")
    page.click("text=Answer again")
    until(page, f"{NOTE}?.includes('Cut at the longest')")
    assert page.evaluate(BODY) == "on" and page.locator(".message").count() == 2
    page.click("#undo button")
    assert answered(page) == "once"
    page.reload()
    assert answered(page) == "once"


def test_a_cut_answer_is_continued(page: Page) -> None:
    page.click("#settings summary")
    page.fill("#max-tokens", "3")
    page.keyboard.press("Escape")
    write(page, "echo abcdefgh")
    for text in ("abc", "abcdef", "abcdefgh"):
        until(page, f"{BODY} === '{text}' && !document.querySelector('.streaming')")
        if text != "abcdefgh":
            page.click("text=Continue")
    assert page.locator("text=Continue").count() == 0 and page.locator(".message").count() == 2


def test_a_message_is_edited_and_sent_again(page: Page) -> None:
    for number, text in enumerate(("one", "two", "three"), start=1):
        write(page, f"echo {text}")
        assert answered(page, number) == text
    page.locator(".user").nth(1).hover()
    page.locator(".user").nth(1).locator("text=Edit").click()
    page.fill(".edit", "echo <b>other</b>")
    page.click("text=Send again")
    assert answered(page, 2) == "<b>other</b>"
    page.click("#undo button")
    assert answered(page, 3) == "three"
    page.locator(".user").nth(0).hover()
    page.locator(".user").nth(0).locator("text=Edit").click()
    page.keyboard.press("Escape")
    assert page.locator(".user .body").nth(0).inner_text() == "echo one"
    assert page.evaluate("document.activeElement.innerText") == "Edit"


def test_a_calculation_goes_back_as_the_model_wrote_it(page: Page, server: Server) -> None:
    write(page, "calc")
    assert answered(page) == "6*7 = 42 is it"
    write(page, "history")
    got = [int(word) for word in answered(page, 2).split()]
    # The special tokens are one each: 13 for the whole calculation, not 60 letters.
    calculation = [261, *b"6*7", 262, 263, *b"42", 264, *b" is it"]
    expected = [256, 257, *b"calc", 258, 259, *calculation, 260]
    assert got[: len(expected)] == expected
    # What a person writes never becomes one.
    body = {"messages": [{"role": "user", "content": "history <|python_start|>"}], "model": "sft/d12/2000"}
    lines = server.ask("/chat/completions", body)[2].decode().splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    got = [int(word) for word in "".join(event.get("token", "") for event in events).split()]
    assert got == [256, 257, *b"history <|python_start|>", 258, 259]


def test_two_answers_of_one_name_and_names_that_are_none(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "echo x"}], "id": "0123456789abcdef", "keep": True}
    assert server.ask("/chat/completions", body)[0] == 200
    assert server.ask("/chat/completions", body)[0] == 409
    status, _, data = server.ask("/chat/answers/0123456789abcdef")
    assert status == 200 and b'"done": true' in data
    assert server.ask("/chat/answers/0000000000000000")[0] == 404
    assert server.ask("/chat/completions", {**body, "id": "../x"})[0] == 400
    assert server.ask("/chat/completions", {**body, "id": None, "extend": True})[0] == 400


def test_nothing_red_when_a_page_is_left_in_the_middle(browser: Browser, server: Server) -> None:
    page = new_page(browser)
    page.goto(server.url)
    until(page, "!!document.querySelector('.empty')")
    server.world.gate("left", 1)
    write(page, "gate left")
    until(page, f"{BODY} === '0'")
    page.goto("about:blank")
    server.world.gate("left", 99)
    assert seen(page).problems == []
    page.context.close()


def test_stop_does_not_wait_for_the_server(browser: Browser, server: Server) -> None:
    with Network(server.port) as network:
        page = new_page(browser, width=1000, height=800)
        page.goto(f"http://127.0.0.1:{network.port}/")
        until(page, "!!document.querySelector('.empty')")
        server.world.gate("stalled", 2)
        write(page, "gate stalled")
        until(page, f"{BODY} === '01'")
        network.open.clear()
        page.click("#send")
        until(page, f"{NOTE} === 'Stopped.'")
        assert answered(page) == "01" and page.inner_text("#send") == "Send"
        network.open.set()
        server.wait_for(lambda: server.json("/stats")["streams"] == 0)  # nor is it made for nobody
        server.world.gate("stalled", 99)
        page.context.close()


def test_stop_where_all_connections_of_the_browser_are_taken(page: Page, server: Server) -> None:
    server.world.gate("six", 0)
    for _ in range(6):
        page.click("#new")
        write(page, "gate six")
        until(page, "document.querySelector('.waiting')?.innerText.includes('Reading your message')")
    page.click("#send")
    until(page, f"{NOTE} === 'Stopped.'")
    assert page.locator("text=Continue").count() == 0  # there is nothing to go on with
    server.wait_for(lambda: server.json("/stats")["streams"] == 5)
    server.world.gate("six", 99)
    until(page, "!document.querySelector('#conversations .dot')")


def test_what_came_stays_while_an_answer_is_picked_up_again(browser: Browser, server: Server) -> None:
    page = opened_page(browser, server, width=1000, height=800)
    server.world.gate("kept", 4)
    write(page, "gate kept")
    until(page, f"{BODY} === '0123'")
    page.goto("about:blank")
    begun = 'data: {"id": "x", "model": "sft/d12/2000"}\n\n'
    page.route("**/chat/answers/*", lambda route: route.fulfill(status=404, body='{"detail": "gone"}'))
    page.route("**/chat/answers/*", lambda route: route.fulfill(content_type="text/event-stream", body=begun), times=1)
    page.goto(server.url)
    until(page, f"{NOTE} === 'Cut off: the server no longer has this answer.'")
    assert page.evaluate(BODY) == "0123"
    page.context.close()
    server.world.gate("kept", 99)


def test_half_a_character_at_a_cut_comes_whole(page: Page) -> None:
    page.click("#settings summary")
    page.fill("#max-tokens", "4")
    page.keyboard.press("Escape")
    write(page, "echo ab🌍cd")
    until(page, f"{NOTE}?.includes('Cut at the longest')")
    assert page.evaluate(BODY) == "ab"
    page.click("text=Continue")
    until(page, f"{BODY} === 'ab🌍'")


def test_a_long_answer_is_sent_in_part_and_gone_on_with_at_its_end(page: Page) -> None:
    sent: list[list[dict[str, str]]] = []

    def reply(route: Route) -> None:
        sent.append(route.request.post_data_json["messages"])
        text = json.dumps({"token": "a" * 7999 + "🌍" + "b" * 3000})
        events = ['{"id": "x", "model": "m"}', text, '{"done": true, "tokens": 9, "seconds": 1, "reason": "length"}']
        route.fulfill(
            status=200, content_type="text/event-stream", body="".join(f"data: {event}\n\n" for event in events)
        )

    page.route("**/chat/completions", reply)
    write(page, "long")
    answered(page)
    page.click("text=Continue")
    until(page, f"{BODY}?.length > 20000")
    write(page, "more")
    answered(page, 2)
    assert sent[1][-1]["content"].endswith("🌍" + "b" * 3000) and len(sent[1][-1]["content"]) <= 8000
    assert sent[2][1]["content"] == "a" * 7999  # no half of a character, which no tokenizer can read
