"""Around the conversation: long pastes, phones, the theme, search, pictures, models that appear."""

from __future__ import annotations

import pytest
from playwright.sync_api import Route

from tests.browser import Browser, Page, until
from tests.nanochat_web.harness import Server
from tests.nanochat_web.pages import SCREENS, answered, opened_page, shot, write

pytestmark = pytest.mark.browser


def test_a_long_paste_is_kept_said_and_not_sent(page: Page) -> None:
    page.click("#message")
    page.keyboard.insert_text("x" * 9000)
    assert len(page.input_value("#message")) == 9000
    assert page.inner_text("#length") == "9,000 characters; the server takes 8,000 in one message: shorten it by 1,000."
    assert page.is_disabled("#send")
    page.keyboard.press("Enter")
    assert page.locator(".message").count() == 0 and len(page.input_value("#message")) == 9000
    shot(page, "long")
    page.fill("#message", "x" * 7900)
    assert page.inner_text("#length") == "7,900 of 8,000 characters" and page.is_enabled("#send")
    page.fill("#message", "x")
    assert page.is_hidden("#length")


def test_on_a_phone_enter_makes_a_line(browser: Browser, server: Server) -> None:
    page = opened_page(browser, server, **SCREENS["phone-light"])
    assert page.get_attribute("#message", "enterkeyhint") == "enter" and page.is_hidden("#keys")
    page.click("#message")
    page.keyboard.insert_text("echo one")
    page.keyboard.press("Enter")
    page.keyboard.insert_text("two")
    assert page.input_value("#message") == "echo one\ntwo"
    page.click("#send")
    assert answered(page) == "one\ntwo"
    page.context.close()


def test_ones_own_messages_are_on_the_right(page: Page) -> None:
    write(page, "echo hello")
    answered(page)
    edge = "(which => document.querySelector(which).getBoundingClientRect())"
    assert page.evaluate(f"{edge}('.user .body').right === {edge}('#log').right")
    assert page.evaluate(f"{edge}('.user .body').left > {edge}('.assistant .body').left + 200")


def test_the_theme_is_chosen_and_stays(page: Page) -> None:
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(paper)
    assert page.inner_text("#theme") == "Theme: as the system"
    page.click("#theme")
    assert page.inner_text("#theme") == "Theme: light" and page.evaluate(paper) == light
    page.click("#theme")
    assert page.inner_text("#theme") == "Theme: dark" and page.evaluate(paper) != light
    page.reload()
    until(page, "!!document.querySelector('.empty')")
    assert page.inner_text("#theme") == "Theme: dark" and page.evaluate(paper) != light
    page.emulate_media(color_scheme="dark")
    page.click("#theme")
    page.click("#theme")
    assert page.inner_text("#theme") == "Theme: light" and page.evaluate(paper) == light


def test_conversations_are_searched(page: Page) -> None:
    for text in (
        "ducks swim",
        "geese fly",
        "a long tale about nothing much that goes on and on and ends with Rayleigh scattering",
    ):
        if page.locator(".message").count():
            page.click("#new")
            until(page, "!!document.querySelector('.empty')")
        write(page, f"echo {text}")
        answered(page)
    names = page.locator("#conversations .open")
    page.fill("#search", "RAYLEIGH")
    assert names.count() == 1 and "tale about" in names.inner_text()
    assert "Rayleigh scattering" in page.inner_text("#conversations .piece")
    shot(page, "search")
    page.fill("#search", "geese")
    names.click()
    assert answered(page) == "geese fly"
    page.fill("#search", "nowhere")
    assert names.count() == 0 and page.is_visible("#none-found")
    page.fill("#search", "")
    assert names.count() == 3


def test_a_picture_is_a_plain_link(page: Page) -> None:
    write(page, 'echo ![a duck](https://example.org/d.png "title") ![](https://example.org/e.png) !here ![x](data:y)')
    answered(page)
    links = page.evaluate("[...document.querySelectorAll('.assistant .body a')].map(a => [a.innerText, a.href])")
    assert links == [["a duck", "https://example.org/d.png"], ["https://example.org/e.png"] * 2]
    assert page.inner_text(".assistant .body") == "a duck https://example.org/e.png !here ![x](data:y)"


def test_new_checkpoints_appear_without_a_reload(page: Page, server: Server) -> None:
    page.click("#model")
    before = page.locator(".model-card").count()
    file = server.world.put("chatrl_checkpoints", "d12", 466) / "model_000466.pt"
    until(page, f"document.querySelectorAll('.model-card').length === {before + 1}")
    file.write_bytes(file.read_bytes()[:300])
    until(page, "[...document.querySelectorAll('.broken')].some(card => card.innerText.includes('is incomplete'))")
    card = page.locator(".broken", has_text="is incomplete")
    assert (
        "Copy it again from where it was trained" in card.inner_text() and card.locator("code").inner_text() == "df -h"
    )
    shot(page, "models-broken")
    file.unlink()
    until(page, f"document.querySelectorAll('.model-card').length === {before}")


def test_a_double_click_sends_and_does_not_stop(page: Page, server: Server) -> None:
    server.world.gate("double", 1)
    page.fill("#message", "gate double")
    page.dblclick("#send")
    until(page, "document.querySelector('.assistant .body')?.innerText.trim() === '0'")
    assert page.inner_text("#send") == "Stop"
    server.world.gate("double", 99)
    assert answered(page) == "0123456789"


def test_the_model_chosen_while_one_answers_is_shown(page: Page, server: Server) -> None:
    server.world.gate("chosen", 1)
    write(page, "gate chosen")
    until(page, "document.querySelector('.assistant .body')?.innerText.trim() === '0'")
    page.click("#model")
    page.click("[data-model='sft/d4/300']")
    assert "d4" in page.inner_text("#model-name")
    server.world.gate("chosen", 99)
    answered(page)
    write(page, "echo x")
    answered(page, 2)
    assert page.locator(".assistant .who").all_inner_texts()[1].startswith("d4")


def test_escape_while_a_word_is_chosen_stops_nothing(page: Page, server: Server) -> None:
    server.world.gate("composing", 1)
    write(page, "gate composing")
    until(page, "document.querySelector('.assistant .body')?.innerText.trim() === '0'")
    page.evaluate(
        "document.querySelector('#message').dispatchEvent("
        "new KeyboardEvent('keydown', { key: 'Escape', isComposing: true, bubbles: true }))"
    )
    server.world.gate("composing", 99)
    assert answered(page) == "0123456789"


def test_the_focus_stays_in_the_list(page: Page) -> None:
    for text in ("one", "two"):
        if page.locator(".message").count():
            page.click("#new")
        write(page, f"echo {text}")
        answered(page)
    page.focus("#conversations li:nth-child(2) .open")
    page.keyboard.press("Enter")
    assert answered(page) == "one"
    assert page.evaluate("document.activeElement.innerText") == "echo one"


def test_models_are_asked_for_once_at_a_time(page: Page) -> None:
    page.clock.install()
    page.reload()
    until(page, "!!document.querySelector('.empty')")
    asked: list[Route] = []
    page.route("**/models", lambda route: asked.append(route))  # a server that does not answer
    for _ in range(100):
        page.clock.run_for(3000)
        page.wait_for_timeout(20)  # what the browser asks comes here by and by
    assert len(asked) == 1


def test_text_from_the_right(page: Page) -> None:
    write(page, "echo مرحبا!\n\n- שלום.\n\none")
    answered(page)
    from_the_right = """[...document.querySelectorAll('.assistant .body :is(p, li)')].map(one => {
      const range = document.createRange();
      range.selectNodeContents(one);
      const [text, box] = [range, one].map(part => part.getBoundingClientRect());
      return text.left - box.left > box.right - text.right; })"""
    assert page.evaluate(from_the_right) == [True, True, False]
    shot(page, "from-the-right")
