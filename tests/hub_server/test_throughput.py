"""The comparison with nginx runs and counts right. What it finds is kept in docs/results; no speed is asserted here."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.hub_server import throughput
from tests.hub_server.harness import ROOT, needs_nginx

KEPT = ROOT / "docs" / "results" / "hub-throughput.json"


@pytest.mark.slow
@needs_nginx
@pytest.mark.skipif(shutil.which("ab") is None, reason="ab is not installed: apt-get install apache2-utils")
def test_the_comparison_runs() -> None:
    rows = throughput.compare(4 << 20, rounds=2, count=200)
    assert [row["big"] for row in rows if "big" in row] == [f"{n} clients" for n in throughput.CLIENTS]
    assert [row["small"] for row in rows if "small" in row] == list(throughput.SMALL_PATHS)
    assert all(float(str(row["ratio"])) > 0 for row in rows)


def test_the_kept_result_is_complete() -> None:
    value = json.loads(KEPT.read_text(encoding="utf-8"))
    assert {"date", "machine", "commit", "nginx", "rows"} <= value.keys()
    assert all({"ratio"} <= row.keys() for row in value["rows"])
