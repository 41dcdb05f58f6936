"""Results by model: the table, its order, the plot, the file."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.browser import CONTRAST, NAMELESS, Browser, new_page, seen, until
from tests.nanochat_web.harness import World, running
from tests.nanochat_web.pages import shot

pytestmark = pytest.mark.browser

ROWS = "[...document.querySelectorAll('#results-table tbody tr')].map(row => [...row.cells].map(c => c.innerText))"
DOTS = """[...document.querySelectorAll('#plot circle')].map(
  dot => [dot.textContent, Number(dot.getAttribute('cx')), Number(dot.getAttribute('cy'))])"""


SFT = "sft/d12/2000"


def finished(folder: Path, number: int, model: str, task: str, result: float, unit: str = "percent") -> Path:
    name = f"20261126-0000{number:02d}-abcdef"
    progress = {"done": 1319, "total": 1319, "right": 100, "result": result, "unit": unit}
    run: dict[str, Any] = {"id": name, "model": model, "name": model, "task": task, "limit": None, "state": "done"}
    run |= {"created": 1.79e9, "started": 1.79e9, "ended": 1.79e9 + number, "command": "x", "progress": progress}
    file = folder / f"{name}.json"
    file.write_text(json.dumps(run), encoding="utf-8")
    return file


@pytest.mark.parametrize("width", [1200, 360])
def test_the_table_the_plot_and_the_file(browser: Browser, world: World, width: int) -> None:
    folder = world.state / "evaluations"
    folder.mkdir(parents=True)
    scores = {"sft/d4/500": 2.5, "sft/d4/1500": 4.0, "sft/d12/2000": 12.25, "mine/rl/d12/900": 9.5, "sft/d12/1000": 8.0}
    for number, (model, score) in enumerate(scores.items()):
        finished(folder, number, model, "GSM8K", score)
    finished(folder, 9, "base/d12/5500", "CORE", 0.2134, "core")
    with running(world) as server:
        page = new_page(browser, width=width, height=900)
        page.goto(f"{server.url}#/evaluate")
        until(page, "document.querySelectorAll('#results-table tbody tr').length === 6")
        assert page.is_hidden("#plot")
        page.select_option("#results-task", "GSM8K")
        page.click("[data-column=Score]")
        found = page.evaluate(ROWS)
        assert [row[4] for row in found] == ["12.25 %", "9.50 %", "8.00 %", "4.00 %", "2.50 %"]
        assert found[1][:4] == ["mine/d12", "rl", "900", "GSM8K"] and found[0][5] == "1,319"
        assert page.get_attribute("th:has([data-column=Score])", "aria-sort") == "descending"
        page.click("[data-column=Step]")
        assert [row[2] for row in page.evaluate(ROWS)] == ["500", "900", "1,000", "1,500", "2,000"]
        page.click("[data-column=Step]")
        assert page.evaluate(ROWS)[0][2] == "2,000"
        page.click("[data-column=Model]")
        assert [row[0] for row in page.evaluate(ROWS)] == ["d4", "d4", "d12", "d12", "mine/d12"]
        # Three models, a line each; higher is better, further right is later.
        assert page.locator("#plot polyline").count() == 3
        place = {title: (x, y) for title, x, y in page.evaluate(DOTS)}
        low, high = place["d4 sft, step 500: 2.50 %"], place["d12 sft, step 2,000: 12.25 %"]
        assert low[0] < high[0] and low[1] > high[1] and len(place) == 5
        with page.expect_download() as download:
            page.click("#results-save")
        table = list(csv.reader(Path(download.value.path()).read_text(encoding="utf-8").splitlines()))
        assert table[0] == ["model", "stage", "step", "task", "score", "problems", "date"] and len(table) == 6
        assert sorted(row[:6] for row in table[1:])[0] == ["d12", "sft", "1000", "GSM8K", "8", "1319"]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CONTRAST) == page.evaluate(NAMELESS) == []
        page.locator("#results").scroll_into_view_if_needed()
        shot(page, f"results-{width}")
        assert seen(page).problems == []
        page.context.close()


def test_the_page_stays_usable_beside_a_broken_result(browser: Browser, world: World) -> None:
    folder = world.state / "evaluations"
    folder.mkdir(parents=True)
    finished(folder, 1, SFT, "GSM8K", 2.5)
    (folder / "20261126-000002-abcdef.json").write_text("{", encoding="utf-8")
    for number, change in ((3, {"model": 5}), (4, {"progress": {"result": "none"}}), (5, {"created": None})):
        file = finished(folder, number, SFT, "GSM8K", 2.5)
        file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with running(world) as server:
        page = new_page(browser)
        page.goto(f"{server.url}#/evaluate")
        until(page, "document.querySelectorAll('.run').length === 1")
        assert page.inner_text("#runs .problem").count("Left out") == 1
        assert page.inner_text("#runs .problem").count(".json: ") == 4
        page.focus(".run summary")
        with page.expect_response("**/evaluations"):
            pass
        page.wait_for_timeout(100)
        assert page.evaluate("document.activeElement.localName") == "summary"
        page.click(".run button[data-name=Delete]")
        until(page, "document.querySelector('#runs').innerText.includes('None yet')")
        assert page.is_visible("#runs .problem") and seen(page).problems == []
        page.context.close()


def test_a_double_click_on_cancel_deletes_nothing(browser: Browser, world: World) -> None:
    with running(world) as server:
        first, second = (server.json("/evaluations", {"model": SFT, "task": "GSM8K", "limit": 4}) for _ in range(2))
        page = new_page(browser)
        page.goto(f"{server.url}#/evaluate")
        until(page, "document.querySelectorAll('.run').length === 2")
        until(page, "!!document.querySelector('.task')")  # from here on nothing moves
        card = f"[data-run='{second['id']}']"
        page.click(f"{card} [data-name=Cancel]")
        until(page, f'document.querySelector("{card}").innerText.includes("Cancelled")')
        page.mouse.down(click_count=2)
        page.mouse.up(click_count=2)
        with page.expect_response("**/evaluations"):
            pass
        assert [one["id"] for one in server.json("/evaluations")["runs"]] == [second["id"], first["id"]]
        page.context.close()


def test_a_log_is_read_while_it_grows(browser: Browser, world: World) -> None:
    with running(world) as server:
        world.gate("GSM8K", 1)
        server.json("/evaluations", {"model": SFT, "task": "GSM8K", "limit": 4})
        page = new_page(browser)
        page.route("**/log", lambda route: route.fulfill(body="line\n" * 100))
        page.goto(f"{server.url}#/evaluate")
        until(page, "document.querySelector('.run')?.innerText.includes('1 of 4')")
        page.click(".run summary")
        until(page, "document.querySelector('.run pre').scrollTop > 0")  # its end
        page.evaluate("(pre => { pre.focus(); pre.scrollTop = 200; })(document.querySelector('.run pre'))")
        world.gate("GSM8K", 2)
        with page.expect_response("**/log"):
            until(page, "document.querySelector('.run').innerText.includes('2 of 4')")
        page.wait_for_timeout(100)
        assert page.evaluate("[document.activeElement.localName, document.activeElement.scrollTop]") == ["pre", 200]
        page.context.close()


def test_a_server_that_goes_and_comes_and_a_checkpoint_that_is_deleted(browser: Browser, world: World) -> None:
    page = new_page(browser)
    with running(world) as server:
        page.goto(server.url)
        until(page, "!!document.querySelector('.empty')")
        port = str(server.port)
    page.click("#to-evaluate")
    until(page, "document.querySelector('#runs-error').innerText.includes('cannot be reached')")
    shot(page, "evaluate-gone")
    with running(world, "--port", port):
        until(page, "!!document.querySelector('.task')")
        until(
            page, "document.querySelector('#runs-error').hidden && document.querySelector('#evaluation-error').hidden"
        )
        page.select_option("#evaluation-model", "sft/d4/300")
        page.click("input[value=GSM8K]")
        for file in (world.base / "chatsft_checkpoints" / "d4").iterdir():
            file.unlink()
        until(page, "document.querySelectorAll('#evaluation-model option').length === 2")
        assert page.input_value("#evaluation-model") == SFT
        until(page, "document.activeElement.value === 'GSM8K' && document.activeElement.checked")
        span = "import('./static/dom.js').then(dom => dom.span(-90))"
        assert page.evaluate(span) == "0 s"  # where the server's clock is ahead
    page.context.close()
