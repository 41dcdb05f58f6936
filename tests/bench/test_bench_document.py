"""docs/performance.md says what the result files say, and the result files are whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flash_attn3_sm121.bench.document import FULL, OVERHEAD, QUICK, filled
from flash_attn3_sm121.bench.result import Report
from flash_attn3_sm121.errors import UsageError

DOCS = Path(__file__).parents[2] / "docs"


def test_the_figures_in_the_document_are_those_of_the_files() -> None:
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    assert filled(text, DOCS / "results") == text, (
        "python -m flash_attn3_sm121.bench.document --write docs/performance.md"
    )


def test_markers_must_be_there() -> None:
    with pytest.raises(UsageError, match="once each"):
        filled("nothing", DOCS / "results")


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
