"""A run as JSON, text, CSV, Markdown, HTML and plots, and two runs side by side."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from flash_attn3_sm121.bench.compare import compare, comparison
from flash_attn3_sm121.bench.html import page
from flash_attn3_sm121.bench.plots import lead_scale, leads, png, svg
from flash_attn3_sm121.bench.result import Report
from flash_attn3_sm121.bench.text import markdown, table, to_csv
from flash_attn3_sm121.cli import main
from flash_attn3_sm121.console import plain
from flash_attn3_sm121.errors import UsageError
from tests.bench.samples import report
from tests.browser import Browser, new_page, seen


def test_json_round_trip() -> None:
    made = report()
    assert Report.from_json(made.to_json(), origin="x") == made


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 99, "results": []}', '{"schema": 1, "results": [1]}']
)
def test_other_files_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"other\.json"):
        Report.from_json(text, origin="other.json")


def test_a_wrong_answer_has_no_rank_but_is_compared_with() -> None:
    won, ragged, nobody = report().results
    assert [entry.contender for entry in won.ranked()] == ["sdpa", "dense-mask", "torch-math"]
    assert [entry.contender for entry in ragged.ranked()] == ["sdpa"]
    assert ragged.times_faster("sdpa", "dense-mask") == pytest.approx(1 / 3)
    assert nobody.ranked() == [] and nobody.times_faster("sdpa", "dense-mask") is None
    assert [(result.workload.name, round(times, 2), memory) for result, _, times, memory in leads(report())] == [
        ("won", 10.0, 30.0),
        ("ragged", 0.33, 1.0),
    ]


def test_table() -> None:
    text = plain(table(report()))
    assert "10.00x, 30x less memory" in text
    assert "WRONG: out: error 3 of its size" in text and "(1 ms)" in text
    assert "RuntimeError: <boom>" in text and "left out" not in text
    assert "left out" in plain(table(report(), unserved=True))
    assert all(line == line.rstrip() for line in text.splitlines())


def test_markdown_is_a_table_even_with_bars_in_it() -> None:
    lines = markdown(report()).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(report()))))
    assert len(rows) == 8
    assert rows[0]["contender"] == "sdpa" and float(rows[0]["times_faster_than_dense_mask"]) == pytest.approx(10)
    assert rows[-1]["status"] == "refused" and rows[-1]["median_ms"] == ""


def test_compare() -> None:
    before, after = report(), report(scale=0.5)
    rows, remarks = compare(before, after)
    by_name = {(name, contender): cells for name, contender, *cells in rows}
    assert by_name["won", "sdpa"][2:4] == ["2.00x", "2.00x"]
    assert ("ragged", "dense-mask") not in by_name and remarks == []
    other = dataclasses.replace(after, results=after.results[:1], machine={"device": "Another"})
    text = plain(comparison(before, other))
    assert "ragged: only in the first" in text and "The devices differ" in text


class Outside(HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value and not value.startswith(("#", "data:")):
                self.fetched.append(value)


def test_the_page_stands_alone_and_escapes() -> None:
    text = page(report())
    parser = Outside()
    parser.feed(text)
    assert parser.fetched == [] and "@import" not in text and "url(" not in text.replace("url(#", "")
    assert "Imaginary &lt;GPU&gt;" in text and "<GPU>" not in text and "<boom>" not in text
    assert "10.0x" in text and "2 of 2" in text


def test_the_page_of_a_run_without_a_single_time() -> None:
    empty = dataclasses.replace(report(), results=report().results[2:])
    assert "nothing was timed" in page(empty) and "no workload was timed for both" in page(empty)


def test_the_plots_are_drawn_once_for_both_forms() -> None:
    """The SVG holds the figures as text, in the page's colours; the PNG holds bars of both contenders."""
    text = svg(report())
    words = re.findall(r"<text[^>]*>([^<]*)</text>", text)
    assert {"10.00x", "0.33x *", "2 ms, 1 MiB", "wrong (1 ms)", "won", "compute-bound", "sdpa (ours)"} <= set(words)
    assert "nobody" not in words, "a workload that was not timed has no panel"
    assert "var(--c-sdpa)" in text and "#0072b2" not in text and "var(--ink)" in text, "the page's theme colours it"
    image = pytest.importorskip("matplotlib.image").imread(io.BytesIO(png(report())))
    assert image.shape[1] == 1296 and image.shape[0] > 600
    sdpa, dense = (tuple(int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)) for colour in ("#0072b2", "#d55e00"))
    longest = [
        max(int((abs(row[:, :3] - colour).max(axis=1) < 0.01).sum()) for row in image) for colour in (sdpa, dense)
    ]
    assert longest[0] > 100 and longest[1] > 100


def test_without_matplotlib_the_page_has_its_tables_and_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = page(report())
    assert "<svg" not in text and "flash_attn3_sm121[bench]" in text and "10.00x, 30x less memory" in text
    saved = tmp_path / "run.json"
    saved.write_text(report().to_json(), encoding="utf-8")
    assert main(["bench", "--from-json", str(saved), "--png", str(tmp_path / "r.png")]) == 5
    assert "flash_attn3_sm121[bench]" in capsys.readouterr().err and not (tmp_path / "r.png").exists()


@pytest.mark.browser
def test_the_page_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page(report()), encoding="utf-8")
    for width, dark in ((1200, False), (390, True)):
        shown = new_page(browser, width=width, height=844, dark=dark)
        shown.goto(file.as_uri())
        assert shown.evaluate("document.title") == "Attention on Imaginary <GPU>"
        assert shown.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
        plot = "document.querySelector('svg.plot').getBoundingClientRect()"
        assert shown.evaluate(f"{plot}.width") >= 700 and shown.evaluate(f"{plot}.height") > 500
        ink = "getComputedStyle([...document.querySelectorAll('svg text')].find(t => t.textContent == 'won')).fill"
        light_or_dark = shown.evaluate(ink)
        background = "getComputedStyle(document.body).backgroundColor"
        before = shown.evaluate(background)
        shown.click("#theme")
        assert shown.evaluate(background) != before
        assert shown.evaluate(ink) != light_or_dark, "the plot follows the theme"
        assert seen(shown).problems == []
        shown.context.close()


def test_the_axis_of_leads_holds_one_and_wastes_nothing() -> None:
    assert lead_scale([1.0, 20.0]) == (0.8, 20.0)
    assert lead_scale([0.4, 1.1]) == (0.4, 2.0)
    assert lead_scale([]) == (0.8, 2.0)
