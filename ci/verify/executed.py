"""The kernels for 12.1 that were executed in software before a wheel was made of them.

The repository keeps a record: a document that `make prove` wrote. It counts for every build whose kernels have the same
PTX, on any machine and whatever else the build holds. So users need not execute again what they build.
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


def recorded(reports: Sequence[ObjectReport], ptx: Mapping[str, str], folder: Path = RECORDS) -> dict[str, Any] | None:
    """Look up a library's kernels for 12.1 in the records.

    Args:
        reports: of the library's units.
        ptx: the hash of each kernel's PTX.

    Returns:
        The summary of these kernels; None if the library has none for 12.1, or if no record covers all of them.
    """
    names = {use.kernel for report in reports for use in report.usage if use.image == IMAGE}
    for path in sorted(folder.glob("executed-*.json")) if names else ():
        made = json.loads(path.read_text(encoding="utf-8"))
        told = {row["kernel"]: row["ptx"] for row in (*made["kernels"], *made["unreached"])}
        if not made["failed"] and all(name in told and ptx.get(name) == told[name] for name in names):
            return {**summary(_limited(made, names)), "record": path.name}
    return None


def _limited(made: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Cut the document down to these kernels, and to the cases that launched no other kernel."""
    rows = [row for row in made["kernels"] if row["kernel"] in names]
    mine = {place for place, row in enumerate(made["kernels"]) if row["kernel"] in names}
    cases = sum(mine.issuperset(launched) for launched in made["launched"])
    unreached = [row for row in made["unreached"] if row["kernel"] in names]
    return {**made, "kernels": rows, "unreached": unreached, "cases": cases}


def executed(cache: Path, reports: Sequence[ObjectReport], ptx: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the summary of a library's executed kernels, from a record or from a run on this machine, or None."""
    if (found := recorded(reports, ptx)) is not None:
        return found
    text = find_executed(cache, (report.key for report in reports))
    return None if text is None else json.loads(text)
