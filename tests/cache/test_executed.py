"""What was executed of a library's objects: found again by the same objects, and by no others."""

from __future__ import annotations

import json
from pathlib import Path

from ci.cache.objects import find_executed, put_executed
from ci.verify.report import proof_line

DOCUMENT = {"attention": 4, "cases": 30, "wrong": 0}


def test_it_is_found_by_the_same_objects_in_any_order(tmp_path: Path) -> None:
    assert find_executed(tmp_path, ["a", "b"]) is None
    put_executed(tmp_path, ["a", "b"], DOCUMENT)
    found = find_executed(tmp_path, ["b", "a"])
    assert found is not None and json.loads(found) == DOCUMENT
    assert find_executed(tmp_path, ["a", "c"]) is None and find_executed(tmp_path, ["a"]) is None
    put_executed(tmp_path, ["a", "b"], {**DOCUMENT, "cases": 31})
    assert '"cases": 31' in str(find_executed(tmp_path, ["a", "b"]))


def test_the_line_says_whether_it_was_done_and_what_came_of_it() -> None:
    assert proof_line(DOCUMENT) == "executed in software: 4 attention kernels for 12.1 in 30 cases, none wrong"
    rows = [{"parts": {"out": 0.3, "lse": 0.871}}, {"parts": {}}, {}]
    assert proof_line({**DOCUMENT, "kernels": rows}).endswith("none wrong, errors at most 87 % of their limits")
    assert proof_line({**DOCUMENT, "wrong": 2}).endswith("in 30 cases, 2 of them wrong")
    assert "make prove" in proof_line(None)
