"""The page in a real browser: choosing, sending, tokens one by one, stopping, history, evaluations, access."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser import Browser, Page, new_page, seen, until
from tests.nanochat_web.harness import Server, World, running
from tests.nanochat_web.pages import SCREENS, answered, opened_page, shot, write

pytestmark = pytest.mark.browser


def test_choosing_a_model(page: Page) -> None:
    assert "d12 · Fine-tuned" in page.evaluate("document.querySelector('#model').innerText")
    assert "step 2,000 · loss 1.649" in page.evaluate("document.querySelector('#model').innerText")
    page.click("#model")
    until(page, "document.querySelector('#models').open")
    cards = page.evaluate("[...document.querySelectorAll('.model-card')].map(card => card.innerText)")
    assert len(cards) == 4
    assert all(word in cards[0] for word in ("d12", "2,000", "validation loss", "1.649", "123 kB"))
    assert "just now" in cards[0] or "minute" in cards[0]
    broken = next(card for card in cards if "Cannot be loaded" in card)
    assert "meta_000400.json is not JSON" in broken
    assert page.evaluate("document.querySelector('.broken').tagName") == "DIV"
    page.click("[data-model='base/d12/5500']")
    until(page, "!document.querySelector('#models').open")
    assert "Base" in page.evaluate("document.querySelector('#model').innerText")
    assert page.evaluate("document.activeElement.id") == "message"
    assert "The capital of France is" in page.evaluate("document.querySelector('.prompts').innerText")
    write(page, "Once upon a time~")
    assert answered(page) == "and so on"


def test_tokens_appear_one_by_one_and_stop_stops(page: Page, server: Server) -> None:
    server.world.gate("page", 0)
    write(page, "gate page")
    until(page, "document.querySelector('.waiting')?.innerText.includes('Reading your message')")
    top = page.evaluate("document.querySelector('.assistant').getBoundingClientRect().top")
    for count in range(1, 5):
        server.world.gate("page", count)
        until(page, f"document.querySelector('.assistant .body').innerText.trim() === '{'0123456789'[:count]}'")
        assert page.evaluate("document.querySelector('#send').textContent") == "Stop"
        # What is above does not move while the text grows.
        assert page.evaluate("document.querySelector('.assistant').getBoundingClientRect().top") == top
    page.keyboard.press("Escape")
    assert answered(page) == "0123"
    assert page.evaluate("document.querySelector('.assistant .note').innerText") == "Stopped."
    assert page.evaluate("document.querySelector('#send').textContent") == "Send"
    server.world.gate("page", 99)
    server.wait_for(lambda: server.chats() == 0)
    write(page, "echo and on")
    assert answered(page, 2) == "and on"
    assert "tokens" in page.evaluate("[...document.querySelectorAll('.assistant .note')].at(-1).innerText")


def test_the_line_that_says_who_serves_unfolds_and_stays(browser: Browser, shared: Server) -> None:
    page = opened_page(browser, shared, **SCREENS["light"])
    write(page, "echo served")
    assert answered(page) == "served"
    line = "document.querySelector('#serving').innerText"
    until(page, f"{line}.includes('FlashAttention-3 is served by flash_attn3_sm121')")
    assert "on the CPU with its exact PyTorch fallback" in page.evaluate(line)
    assert "nanochat.gpt.flash_attn" not in page.evaluate(line)
    page.click("#serving summary")
    assert "nanochat.gpt.flash_attn in nanochat is the module of flash_attn3_sm121" in page.evaluate(line)
    shot(page, "serving")
    page.goto(shared.url)
    until(page, f"{line}.includes('FlashAttention-3 is served')")
    assert seen(page).problems == []
    page.context.close()


def test_an_answer_that_is_whole_before_the_next_frame_says_who_serves(browser: Browser, world: World) -> None:
    with running(world) as server:
        page = opened_page(browser, server, **SCREENS["light"])
        page.evaluate("window.requestAnimationFrame = () => 0")  # as in a tab that is not looked at
        write(page, "echo at once")
        assert answered(page) == "at once"
        until(page, "!document.querySelector('#serving').hidden")
        assert "serve" in page.inner_text("#serving")
        page.context.close()


def test_history_is_there_after_a_reload_and_in_the_side_list(page: Page, server: Server) -> None:
    write(page, "echo the **first** one")
    assert answered(page) == "the first one"
    page.goto(server.url)
    until(page, "document.querySelectorAll('.message').length === 2")
    assert answered(page) == "the first one"
    assert page.evaluate("document.querySelector('.assistant strong').innerText") == "first"
    page.click("#new")
    until(page, "!!document.querySelector('.empty')")
    write(page, "echo another")
    answered(page)
    titles = "[...document.querySelectorAll('#conversations .open')].map(one => one.innerText)"
    assert page.evaluate(titles) == ["echo another", "echo the **first** one"]
    page.click("#conversations li:nth-child(2) .open")
    assert answered(page) == "the first one"
    assert page.evaluate("document.title") == "echo the **first** one · nanochat"
    # The little menu folds up by itself; then renamed, with the keyboard; then deleted.
    page.click("#conversations li:nth-child(2) summary")
    until(page, "document.querySelectorAll('.more[open]').length === 1")
    page.keyboard.press("Escape")
    assert page.evaluate("document.querySelectorAll('.more[open]').length") == 0
    page.click("#conversations li:nth-child(1) summary")
    until(page, "document.querySelectorAll('.more[open]').length === 1")
    page.click(".assistant .who")
    assert page.evaluate("document.querySelectorAll('.more[open]').length") == 0
    page.click("#conversations li:nth-child(2) summary")
    page.click("#conversations li:nth-child(2) .more-panel button")
    page.keyboard.insert_text("My own name")
    page.keyboard.press("Enter")
    assert page.evaluate(titles) == ["echo another", "My own name"]
    page.click("#conversations li:nth-child(2) summary")
    page.click("#conversations li:nth-child(2) .danger")
    assert page.inner_text("#conversations li:nth-child(2) .danger") == "Delete it, really?"
    page.click("#conversations li:nth-child(2) .danger")
    until(page, "!!document.querySelector('.empty')")
    assert page.evaluate(titles) == ["echo another"]
    # It can be undone for a while; then it is deleted for good.
    page.click("#undo button")
    until(page, f"{titles}.length === 2")
    assert answered(page) == "the first one"
    page.click("#conversations li:nth-child(2) summary")
    page.click("#conversations li:nth-child(2) .danger")
    page.click("#conversations li:nth-child(2) .danger")
    until(page, "!!document.querySelector('.empty')")
    page.goto(server.url)
    until(page, "document.querySelectorAll('#conversations .open').length === 1")


def test_two_conversations_at_once_in_one_page(page: Page, server: Server) -> None:
    server.world.gate("left", 1)
    write(page, "gate left")
    until(page, "document.querySelector('.assistant .body')?.innerText.trim() === '0'")
    page.click("#new")
    until(page, "!!document.querySelector('.empty')")
    assert page.evaluate("!!document.querySelector('#conversations .dot')")
    server.world.gate("left", 99)
    until(page, "!document.querySelector('#conversations .dot')")
    page.click("#conversations .open")
    assert answered(page) == "0123456789"


def test_a_dead_model_is_told_with_its_last_words_and_may_be_tried_again(page: Page, server: Server) -> None:
    write(page, "die")
    until(page, "!!document.querySelector('.trouble')")
    told = page.evaluate("document.querySelector('.trouble').innerText")
    assert "ended with exit code 7 while answering" in told and "flash-attn3 doctor" in told
    assert page.evaluate("document.querySelector('.trouble code').innerText") == "flash-attn3 doctor"
    page.click(".trouble summary")
    assert "the last words of the stand-in" in page.evaluate("document.querySelector('.trouble pre').innerText")
    assert page.evaluate("document.querySelector('.trouble').getAttribute('role')") == "alert"
    shot(page, "error")
    page.click(".again")
    until(page, "document.querySelectorAll('.message').length === 2 && !!document.querySelector('.trouble')")
    write(page, "echo alive")
    assert answered(page, 2) == "alive"


def test_the_reader_is_not_dragged_along(page: Page, server: Server) -> None:
    for number in range(1, 7):
        write(page, f"echo line {number}\n- a\n- b\n- c\n- d\n- e")
        answered(page, number)
    server.world.gate("drag", 1)
    write(page, "gate drag")
    until(page, "[...document.querySelectorAll('.assistant .body')].at(-1).innerText.trim() === '0'")
    at_end = "(box => box.scrollHeight - box.scrollTop - box.clientHeight < 2)(document.querySelector('#scroll'))"
    assert page.evaluate(at_end)
    page.evaluate("document.querySelector('#scroll').scrollTop = 100")
    until(page, "!document.querySelector('#latest').hidden")
    server.world.gate("drag", 99)
    until(page, "!document.querySelector('.streaming')")
    assert page.evaluate("document.querySelector('#scroll').scrollTop") == 100
    page.click("#latest")
    until(page, at_end)


def test_shift_enter_begins_a_line_and_settings_travel(page: Page) -> None:
    page.click("#message")
    page.keyboard.insert_text("echo one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.insert_text("two")
    assert page.evaluate("document.querySelector('#message').value") == "echo one\ntwo"
    page.click("#settings summary")
    for field, value in (("#temperature", "0"), ("#max-tokens", "6")):
        page.evaluate(
            f"(field => {{ field.value = '{value}'; field.dispatchEvent(new Event('input', {{bubbles: true}})); }})"
            f"(document.querySelector('{field}'))"
        )
    assert page.evaluate("document.querySelector('#temperature-shown').value") == "0.0"
    page.keyboard.press("Escape")
    page.click("#send")
    assert answered(page) == "one\ntw"
    assert "longest answer" in page.evaluate("document.querySelector('.assistant .note').innerText")
    assert page.evaluate("JSON.parse(localStorage['nanochat-web/settings']).max_tokens") == 6


def test_an_evaluation_on_the_page(page: Page, server: Server) -> None:
    server.world.gate("GSM8K", 0)
    page.click("#to-evaluate")
    until(page, "document.querySelectorAll('.task').length === 6")
    assert page.evaluate("[...document.querySelectorAll('.task input:disabled')].map(one => one.value)") == [
        "ARC-Challenge",
        "HumanEval",
        "SpellingBee",
    ]
    page.click("input[value=GSM8K]")
    page.click("#limit")
    page.keyboard.insert_text("4")
    page.click("#start")
    card = "document.querySelector('.run')?.innerText"
    until(page, f"{card}?.includes('Running')")
    server.world.gate("GSM8K", 2)
    until(page, f"{card}.includes('2 of 4 · 1 right so far')")
    assert page.evaluate("document.querySelector('.run progress').position") == 0.5
    shot(page, "running")
    server.world.gate("GSM8K", 4)
    until(page, f"{card}.includes('50.00 % · 2 of 4 right')")
    page.click(".run summary")
    until(page, "document.querySelector('.run pre').innerText.includes('Final: 2/4')")
    shot(page, "done")
    page.goto(server.url)
    until(page, "!!document.querySelector('.empty')")
    page.click("#to-evaluate")
    until(page, f"{card}?.includes('50.00 %')")
    page.click(".run button[data-name=Delete]")
    until(page, "!document.querySelector('.run') && document.querySelector('#runs').innerText.includes('None yet')")


def test_a_server_that_is_gone_and_one_with_an_access_word(browser: Browser, world: World) -> None:
    with running(world, env={"NANOCHAT_WEB_TOKEN": "sesame"}) as server:
        page = new_page(browser)
        page.goto(server.url.partition("#")[0])
        until(page, "document.querySelector('.notice')?.innerText.includes('access word')")
        page.fill("#word", "sesam")
        page.keyboard.press("Enter")
        until(page, "document.querySelector('#word')?.value === ''")
        page.fill("#word", "sesame")
        shot(page, "word")
        page.keyboard.press("Enter")
        until(page, "!!document.querySelector('.empty')")
        # A second tab is not asked again; in another browser the printed address is enough.
        second = new_page(browser, beside=page)
        second.goto(server.url.partition("#")[0])
        until(second, "!!document.querySelector('.empty')")
        second.close()
        other = new_page(browser)
        other.goto(server.url)
        until(other, "!!document.querySelector('.empty')")
        assert other.evaluate("location.hash") == ""
        other.context.close()
        write(page, "echo in")
        assert answered(page) == "in"
    write(page, "echo out")
    until(page, "document.querySelector('.trouble')?.innerText.includes('cannot be reached')")
    page.context.close()


def test_no_models_yet(browser: Browser, tmp_path: Path) -> None:
    world = World.make(tmp_path / "none", light=True)
    with running(world) as server:
        page = opened_page(browser, server, **SCREENS["light"])
        told = page.evaluate("document.querySelector('.notice').innerText")
        assert "No models yet" in told and str(world.base / "chatsft_checkpoints") in told
        assert page.is_disabled("#send")
        assert seen(page).problems == []
        page.context.close()
