"""The comparison with nginx runs and counts right. What it finds is kept in docs/results; no speed is asserted here."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.hub_server import throughput
from tests.hub_server.harness import ROOT

KEPT = ROOT / "docs" / "results" / "hub-throughput.json"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed: apt-get install nginx-light")
def test_the_comparison_runs() -> None:
    rows = throughput.compare(4 << 20, rounds=2)
    assert [row["clients"] for row in rows] == list(throughput.CONCURRENCY)
    for row in rows:
        assert float(str(row["hub_mb_per_s"])) > 0 and float(str(row["nginx_mb_per_s"])) > 0


def test_the_kept_result_holds_the_aim() -> None:
    value = json.loads(KEPT.read_text(encoding="utf-8"))
    assert value["aim"] == throughput.AIM
    assert all(row["ratio"] >= value["aim"] for row in value["rows"])
    assert {"date", "machine", "commit", "nginx"} <= value.keys()
