"""The kernels for 12.1 that were executed in software before a wheel was made of them.

The repository keeps a record: a document that `make prove` wrote. It counts for every build whose PTX is the same, byte
for byte, on any machine. So users need not execute again what they build.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ci import ROOT
from ci.cache.objects import ObjectReport, find_executed
from flash_attn3_sm121.arch import CAPABILITIES

RECORDS = ROOT / "docs" / "results"
SCHEMA = 1
ATTENTION = ("forward", "backward")  # kinds of kernels
IMAGE = CAPABILITIES["12.1"].target
_KEPT = ("kind", "variant", "kernel", "cases", "largest", "parts", "wrong", "instructions", "executed")


def summary(made: Mapping[str, Any], *, findings: Sequence[str] = ()) -> dict[str, Any]:
    """Shorten a document of `make prove` to what a wheel carries. Times and the places of notes are left out.

    Args:
        findings: the faults that were found, in words.
    """
    return {
        "schema": SCHEMA,
        "cases": made["cases"],
        "wrong": len(made["failed"]),
        "attention": sum(row["kind"] in ATTENTION for row in made["kernels"]),
        "kernels": [{name: row[name] for name in _KEPT} for row in made["kernels"]],
        "unreached": [missing["kernel"] for missing in made["unreached"]],
        "findings": list(findings),
        "seeds": made["seeds"],
        "second_poison": made["second_poison"],
    }


def recorded(reports: Sequence[ObjectReport], folder: Path = RECORDS) -> dict[str, Any] | None:
    """Look up a library's kernels for 12.1 in the records.

    Returns:
        The summary of these kernels; None if the library has none for 12.1, or if no record covers all of them.
    """
    units = [report for report in reports if any(use.image == IMAGE for use in report.usage)]
    if not units:
        return None
    names = {use.kernel for report in units for use in report.usage if use.image == IMAGE}
    for path in sorted(folder.glob("executed-*.json")):
        made = json.loads(path.read_text(encoding="utf-8"))
        told = {row["kernel"] for row in (*made["kernels"], *made["unreached"])}
        ptx = set(made["ptx"])
        if names <= told and not made["failed"] and all(ptx & set(unit.ptx.values()) for unit in units):
            return {**summary(_limited(made, names)), "record": path.name}
    return None


def _limited(made: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Cut the document down to these kernels, and to the cases that launched no other kernel."""
    rows = [row for row in made["kernels"] if row["kernel"] in names]
    mine = {place for place, row in enumerate(made["kernels"]) if row["kernel"] in names}
    cases = sum(mine.issuperset(launched) for launched in made["launched"])
    unreached = [row for row in made["unreached"] if row["kernel"] in names]
    return {**made, "kernels": rows, "unreached": unreached, "cases": cases}


def executed(cache: Path, reports: Sequence[ObjectReport]) -> dict[str, Any] | None:
    """Return the summary of a library's executed kernels, from a record or from a run on this machine, or None."""
    if (found := recorded(reports)) is not None:
        return found
    text = find_executed(cache, (report.key for report in reports))
    return None if text is None else json.loads(text)
