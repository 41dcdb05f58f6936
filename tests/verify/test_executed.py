"""What the repository's record of `make prove` says of a library: of kernels with the same PTX, and of no others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ci.cache.objects import KernelUsage, ObjectReport, put_executed
from ci.cache.ptx import kernel_hashes
from ci.verify.executed import RECORDS, executed, recorded
from flash_attn3_sm121.native.buildfacts import executed_line
from tests.fakes.ptx_files import ptx


def unit(name: str, *kernels: str, image: str = "sm_121") -> ObjectReport:
    uses = tuple(
        KernelUsage(kernel=kernel, image=image, registers=1, stack=0, spill_stores=0, spill_loads=0, static_smem=0)
        for kernel in kernels
    )
    cost: dict[str, Any] = {"size": 1, "cpu_s": 1.0, "wall_s": 1.0, "rss_gb": 1.0}
    return ObjectReport(unit=name, key=f"key of {name}", sha256="", usage=uses, ptx={}, **cost)


UNITS = (unit("fwd", "f1", "f2"), unit("combine", "c1", "c2"), unit("api"))


HASHES = kernel_hashes(ptx("f1", "f2", "f3", "c1", "c2"))


def row(kernel: str, kind: str, cases: int) -> dict[str, Any]:
    return {
        "kernel": kernel, "kind": kind, "variant": "", "cases": cases, "largest": {}, "parts": {"out": cases / 10},
        "wrong": 0, "instructions": 5, "executed": 4, "launches": 9, "notes": [], "ptx": HASHES.get(kernel, "?"),
    }  # fmt: skip


RECORD: dict[str, Any] = {
    "kernels": [row("f1", "forward", 3), row("f2", "forward", 4), row("c1", "combine", 5), row("b1", "backward", 6)],
    "unreached": [
        {"kernel": kernel, "kind": "combine", "reason": "", "ptx": HASHES.get(kernel, "?")} for kernel in ("c2", "c3")
    ],
    "launched": [[0], [0, 2], [1, 2], [2], [2, 3]], "failed": [], "findings": [], "cases": 5,
    "seeds": [0], "second_poison": {"cases": 1, "equal": 1},
}  # fmt: skip


def kept(folder: Path, **changes: Any) -> Path:
    (folder / "executed-more.json").write_text(json.dumps(RECORD | changes), encoding="utf-8")
    return folder


def test_a_part_of_what_was_executed_has_its_own_kernels_and_cases(tmp_path: Path) -> None:
    found = recorded(UNITS, HASHES, kept(tmp_path))
    assert found is not None
    assert [each["kernel"] for each in found["kernels"]] == ["f1", "f2", "c1"] and found["unreached"] == ["c2"]
    assert (found["attention"], found["cases"], found["wrong"], found["findings"]) == (2, 4, 0, [])
    assert executed_line(found) == (
        "executed in software: 2 attention kernels for 12.1 in 4 cases, none wrong, errors at most 50 % of their "
        "limits (the same PTX, by docs/results/executed-more.json)"
    )


@pytest.mark.parametrize(
    ("units", "hashes"),
    [
        (UNITS, HASHES | kernel_hashes(ptx("f2").replace("mov", "add"))),
        (UNITS, {}),
        ((unit("fwd", "f1", "f4"), *UNITS[1:]), HASHES | kernel_hashes(ptx("f4"))),
        ((unit("fwd", "f1", image="sm_120"),), HASHES),
    ],
    ids=["other PTX", "no PTX kept", "another kernel", "no code for 12.1"],
)
def test_other_kernels_are_not_taken_for_executed_ones(
    units: tuple[ObjectReport, ...], hashes: dict[str, str], tmp_path: Path
) -> None:
    assert recorded(units, hashes, kept(tmp_path)) is None


def test_a_run_with_a_wrong_case_is_no_record(tmp_path: Path) -> None:
    assert recorded(UNITS, HASHES, kept(tmp_path, failed=[{"case": "", "wrong": ["out is off"]}])) is None


def test_without_a_record_it_is_what_this_machine_executed(tmp_path: Path) -> None:
    assert executed(tmp_path, UNITS, {}) is None
    put_executed(tmp_path, [report.key for report in UNITS], {"attention": 2, "cases": 3, "wrong": 0})
    assert executed(tmp_path, UNITS, {}) == {"attention": 2, "cases": 3, "wrong": 0}


def test_the_records_that_are_kept_name_their_ptx_and_found_nothing_wrong() -> None:
    paths = sorted(RECORDS.glob("executed-*.json"))
    assert paths
    for path in paths:
        made = json.loads(path.read_text(encoding="utf-8"))
        assert made["failed"] == [] and made["only"] == []
        hashes = [row["ptx"] for row in (*made["kernels"], *made["unreached"])]
        assert len(hashes) > 10 and all(re.fullmatch("[0-9a-f]{64}", each) for each in hashes)
