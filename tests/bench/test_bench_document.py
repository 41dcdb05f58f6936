"""The documents with figures say what the result files say, and the result files are whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flash_attn3_sm121.bench.document import FULL, OVERHEAD, PAGES, QUICK, filled, main
from flash_attn3_sm121.bench.result import Report
from flash_attn3_sm121.errors import UsageError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", PAGES)
def test_the_figures_in_the_documents_are_those_of_the_files(name: str) -> None:
    page = (ROOT if name == "README.md" else DOCS) / name
    text = page.read_text(encoding="utf-8")
    assert filled(text, DOCS / "results", PAGES[page.name][1]) == text, (
        "python -m flash_attn3_sm121.bench.document --write docs/performance.md docs/gb10.md README.md"
    )


def test_the_readme_shows_a_dozen_lines_of_the_quick_run() -> None:
    text = PAGES["README.md"][1]["quick"](DOCS / "results")
    assert text.startswith("```console\n$ flash-attn3 bench --quick ") and text.endswith("```\n")
    assert 8 <= text.count("\n") <= 13 and all(len(line) <= 120 for line in text.splitlines())
    assert "decode-ragged" in text and "(dense-mask is wrong)" in text


def test_markers_must_be_there() -> None:
    with pytest.raises(UsageError, match="once each"):
        filled("nothing", DOCS / "results", PAGES["performance.md"][1])


def test_another_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected one of performance\.md, gb10\.md, README\.md"):
        main(["--write", str(tmp_path / "other.md")])


@pytest.mark.parametrize("name", [QUICK, FULL])
def test_result_files_are_real_runs_with_every_answer_of_ours_right(name: str) -> None:
    report = Report.read(DOCS / "results" / name)
    assert report.commit and report.date and report.machine["torch"] and report.seconds > 1
    ours = [entry for result in report.results for entry in result.entries if entry.contender in ("sdpa", "native")]
    assert ours and all(entry.status == "ok" and len(entry.samples_ms) >= 2 for entry in ours)
    assert "/" not in report.command  # no path of the machine that measured


def test_the_overhead_file_compares_with_upstream() -> None:
    data = json.loads((DOCS / "results" / OVERHEAD).read_text(encoding="utf-8"))
    assert all(cost["theirs"] is not None for cost in data["costs"]) and len(data["costs"]) >= 6
